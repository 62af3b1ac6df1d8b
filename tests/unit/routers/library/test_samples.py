"""Files of labelled prompts: what is taken, and what is said of bad rows."""

from pathlib import Path

import pytest

from routers.base import Sample
from routers.errors import BadSamples
from routers.library.samples import parse_samples, read_samples

GOOD = '{"prompt": "two plus two", "answer": "4"}'


def test_rows_are_read_with_their_defaults() -> None:
    samples, bad = parse_samples(
        [GOOD, "", '{"task": "t", "prompt": "p", "answer": "", "metric": "rouge_l", "x": 1}'], "d"
    )
    assert samples == [Sample("two plus two", "4", "d"), Sample("p", "", "t", "rouge_l")]
    assert bad == []


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "recursion"),
        ("[]", "not a JSON object"),
        ('{"prompt": "p"}', "'answer' is missing"),
        ('{"answer": "a"}', "'prompt' is missing"),
        ('{"prompt": 3, "answer": "a"}', "'prompt' must be a text"),
        ('{"prompt": " ", "answer": "a"}', "'prompt' is empty"),
        ('{"prompt": "p", "answer": "a", "metric": "best"}', "no metric 'best'"),
        ('{"prompt": "p", "answer": "' + "a" * 100_001 + '"}', "at most 100000"),
    ],
)
def test_bad_rows_are_named(row: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text(f"{GOOD}\n\n{row}\n")
    with pytest.raises(BadSamples, match=r"line 3: .*--skip-bad-rows") as error:
        read_samples(file)
    assert what in str(error.value)
    samples, bad = read_samples(file, skip_bad=True)
    assert len(samples) == 1
    assert [each.line for each in bad] == [3]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadSamples, match="cannot be read"):
        read_samples(tmp_path / "absent.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadSamples, match="cannot be read"):
        read_samples(tmp_path / "binary.jsonl")
    (tmp_path / "bom.jsonl").write_text("\ufeff" + GOOD)
    assert len(read_samples(tmp_path / "bom.jsonl")[0]) == 1
