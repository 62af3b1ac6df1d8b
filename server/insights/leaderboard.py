"""The newest comparison of policies that was published to this gateway.

    <home>/scores/leaderboard.json    the table that ``moergate compare`` has made, as it was sent

The file is replaced as a whole. Gateways that share a home folder share the file.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_registry.disk.safe_files import replace_file

MAX_LEADERBOARD_BYTES = 4 << 20
MAX_ROWS, MAX_COLUMNS = 1_000, 64

Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=2_000)]
Number = Annotated[float, Field(allow_inf_nan=False)]

log = structlog.get_logger(__name__)


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LeaderboardAbout(_Closed):
    """What was compared and when, and the policies that could not be compared, with the reasons."""

    folders: Annotated[tuple[Text, ...], Field(max_length=100)]
    split: Name
    base: Text
    num_prompts: Annotated[int, Field(ge=0, le=2**53)]
    num_skipped: Annotated[int, Field(ge=0, le=2**53)] = 0
    leave_own_out: bool = False
    made_at: Name
    left_out: Annotated[dict[Name, Text], Field(max_length=MAX_ROWS)] = {}


class LeaderboardColumn(_Closed):
    """A column: its figure, the meaning of the figure, and whether high or low figures are better."""

    key: Name
    title: Name
    meaning: Text
    better: Literal["high", "low", "none"] = "high"


class LeaderboardRow(_Closed):
    """A policy's figures by column, as text to show and as numbers to sort by."""

    shown: Annotated[dict[Name, Text], Field(max_length=MAX_COLUMNS)]
    values: Annotated[dict[Name, Number | Text | None], Field(max_length=MAX_COLUMNS)]


class Leaderboard(_Closed):
    """The body of ``PUT /admin/leaderboard``; ``moergate compare`` writes it as leaderboard.json."""

    about: LeaderboardAbout
    columns: Annotated[tuple[LeaderboardColumn, ...], Field(min_length=1, max_length=MAX_COLUMNS)]
    rows: Annotated[tuple[LeaderboardRow, ...], Field(max_length=MAX_ROWS)]


class PublishedLeaderboard(_Closed):
    """A leaderboard with the time and the key of its publication."""

    published_at: datetime
    published_by: Name
    leaderboard: Leaderboard


class LeaderboardStore:
    """The published leaderboard on disk. All methods block."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "leaderboard.json"

    def put(self, leaderboard: Leaderboard, actor: str) -> PublishedLeaderboard:
        """Replace the published leaderboard; raises OSError if it cannot be written."""
        now = datetime.now(UTC)
        published = PublishedLeaderboard(published_at=now, published_by=actor, leaderboard=leaderboard)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._file, published.model_dump_json().encode())
        return published

    def get(self) -> PublishedLeaderboard | None:
        """The published leaderboard, or None; a file that cannot be read is logged."""
        try:
            return PublishedLeaderboard.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("published leaderboard cannot be read", file=str(self._file), error=str(error))
            return None
