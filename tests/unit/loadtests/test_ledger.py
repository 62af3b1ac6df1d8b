"""What a library must be: everything that may be lost or half-made is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from load.ledger import MAX_PROBLEMS, WEIGHTS_FILE, Ledger

SQL = {"name": "sql", "version": "aaaa", "sha256": "aaaa0000"}


@pytest.fixture
def ledger() -> Ledger:
    """One expert, acknowledged."""
    made = Ledger()
    assert made.begin("sql") is None
    made.send("sql", b"weights")
    made.acknowledge("sql", "aaaa")
    return made


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The library's files of it, as they were sent."""
    folder = tmp_path / "aaaa0000"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / WEIGHTS_FILE).write_bytes(b"weights")
    return tmp_path


async def test_a_library_that_is_what_was_acknowledged(ledger: Ledger, files: Path) -> None:
    await ledger.compare("now", ledger.certain(), [SQL], files)
    ledger.begin("sql")
    ledger.acknowledge("sql", None)
    await ledger.compare("now", ledger.certain(), [], files)
    assert ledger.problems == []


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([], "now: sql should be aaaa, is None"),
        ([SQL | {"version": "bbbb"}], "now: sql should be aaaa, is bbbb"),
        ([SQL, SQL | {"name": "dates"}], "now: dates was never registered"),
        ([SQL | {"sha256": "absent"}], "now: the files of sql@aaaa cannot be read (FileNotFoundError)"),
    ],
)
async def test_what_is_lost_or_unasked_for(
    ledger: Ledger, files: Path, records: list[dict[str, str]], problem: str
) -> None:
    await ledger.compare("now", ledger.certain(), records, files)
    assert ledger.problems == [problem]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [(WEIGHTS_FILE, b"weight", "are not what was sent"), ("adapter_config.json", b"", "have an empty config")],
)
async def test_what_is_half_made(ledger: Ledger, files: Path, file: str, content: bytes, problem: str) -> None:
    (files / "aaaa0000" / file).write_bytes(content)
    await ledger.compare("now", ledger.certain(), [SQL], files)
    assert ledger.problems == [f"now: the files of sql@aaaa {problem}"]


async def test_a_name_with_an_order_under_way_is_left_alone(ledger: Ledger, files: Path) -> None:
    before = ledger.certain()
    assert ledger.begin("sql") == "aaaa"
    assert ledger.certain() == {}
    await ledger.compare("now", before, [], files)
    ledger.acknowledge("sql", None)
    await ledger.compare("now", before, [SQL], files)  # listed before it was removed
    assert ledger.problems == []


def test_an_order_without_an_answer_was_carried_out_or_not(ledger: Ledger) -> None:
    ledger.begin("sql")
    ledger.settle("sql", "aaaa")
    assert (ledger.num_carried_out, ledger.certain()) == (0, {"sql": "aaaa"})
    ledger.begin("sql")
    ledger.send("sql", b"others")
    ledger.settle("sql", "bbbb")
    ledger.begin("sql")
    ledger.settle("sql", None)
    assert (ledger.num_carried_out, ledger.certain(), ledger.problems) == (2, {"sql": None}, [])
    ledger.begin("sql")
    ledger.settle("sql", "cccc")
    assert ledger.problems == ["sql is cccc after an order that would not have made it so"]


def test_problems_are_bounded() -> None:
    ledger = Ledger()
    for number in range(100):
        ledger.note(str(number))
    assert len(ledger.problems) == MAX_PROBLEMS


def test_a_version_before_this_one_is_remembered_until_the_name_is_gone() -> None:
    ledger = Ledger()
    for version, has_earlier in (("1", False), ("2", True), ("2", True), ("1", True), (None, False), ("3", False)):
        ledger.begin("a")
        ledger.acknowledge("a", version)
        assert ledger.has_earlier("a") is has_earlier
