"""The table of scores: merged, kept, and handed to routers as arrays."""

import math
from pathlib import Path

import numpy as np
import pytest

from routers.base import Sample
from server.errors import BadRequest
from server.policies.scores import Figures, ScoreRow, ScoreStore, parse_report

A, B = "a@00000000", "b@00000000"


def row(prompt: str, **models: Figures) -> ScoreRow:
    names = {"base": "base", "a": A, "b": B}
    return ScoreRow(task="t", prompt=prompt, answer="x", models={names[k]: v for k, v in models.items()})


def test_reports_are_merged_and_survive(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    assert store.table([A], (), np.zeros((0, 2), np.float32)) is None
    store.report([row("one", base=Figures(score=0, loss=2.5), a=Figures(score=1))])
    store.report([row("one", a=Figures(score=0.5)), row("two", b=Figures(score=0.25, entropy=1))])
    for opened in (store, ScoreStore(tmp_path)):
        samples = opened.samples()
        assert samples == (Sample("one", "x", "t"), Sample("two", "x", "t"))
        table = opened.table([A, B, "c@00000000"], samples, np.eye(2, dtype=np.float32))
        assert table is not None
        assert table.models == ("base", A, B)
        np.testing.assert_array_equal(table.scores, [[0, 0.5, math.nan], [math.nan, math.nan, 0.25]])
        np.testing.assert_array_equal(table.losses[0], [2.5, math.nan, math.nan])
        assert table.entropies[1, 2] == 1
        gone = opened.table([B], samples, np.eye(2, dtype=np.float32))
        assert gone is not None
        assert gone.models == ("base", B)
    summary = store.summary()
    assert summary["num_prompts"] == 2
    assert {"model": A, "num_prompts": 1, "mean_score": 0.5} in summary["models"]
    store.clear()
    assert ScoreStore(tmp_path).samples() == ()


def test_a_report_that_cannot_be_kept_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScoreStore(tmp_path)
    store.report([row("one", base=Figures(score=0))])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.report([row("two", base=Figures(score=0))])
    assert len(store.samples()) == len(ScoreStore(tmp_path).samples()) == 1


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"{", "Send"),
        (b"[]", "Send"),
        (b'{"rows": 3}', "array"),
        (b'{"rows": [{"prompt": "p", "answer": "a"}]}', "rows.0: models"),
        (b'{"rows": [{"prompt": "p", "answer": "a", "models": {"base": {"score": 2}}}]}', "less than or equal to 1"),
        (b'{"rows": [{"prompt": "p", "answer": "a", "models": {"base": {"points": 1}}}]}', "points"),
    ],
)
def test_bad_reports_are_refused_with_the_place(raw: bytes, what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        parse_report(raw)
