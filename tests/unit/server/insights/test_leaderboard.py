"""The published leaderboard: kept whole, what compare writes is taken, and what is not readable is absent."""

from pathlib import Path

import orjson
import pytest
from pydantic import ValidationError

from server.compare.report import About, board
from server.compare.stats import compare_outcomes
from server.insights.leaderboard import MAX_ROWS, Leaderboard, LeaderboardStore
from tests.unit.server.compare.test_stats import outcomes

ABOUT = About(("tasks",), "val", "tiny", 160, 0, leave_own_out=False, made_at="today")


def compared() -> Leaderboard:
    return Leaderboard.model_validate_json(orjson.dumps(board(compare_outcomes(outcomes()), ABOUT)))


def test_what_compare_writes_is_kept_and_read_again(tmp_path: Path) -> None:
    store = LeaderboardStore(tmp_path / "scores")
    assert store.get() is None
    put = store.put(compared(), "k1")
    found = LeaderboardStore(tmp_path / "scores").get()
    assert found == put
    assert found.published_by == "k1"
    assert {row.values["policy"] for row in found.leaderboard.rows} == {"base", "oracle", "good", "bad"}
    assert store.put(compared(), "k2").published_by == "k2"
    assert [file.name for file in (tmp_path / "scores").iterdir()] == ["leaderboard.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"leaderboard": {}}', b"\xff\xfe"])
def test_a_broken_file_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "leaderboard.json").write_bytes(content)
    assert LeaderboardStore(tmp_path).get() is None


def test_what_is_too_large_or_unknown_is_refused() -> None:
    good = compared().model_dump(mode="json")
    for bad in (
        good | {"extra": 1},
        good | {"columns": []},
        good | {"rows": good["rows"][:1] * (MAX_ROWS + 1)},
        good | {"about": good["about"] | {"made_at": "x" * 201}},
    ):
        with pytest.raises(ValidationError):
            Leaderboard.model_validate(bad)
