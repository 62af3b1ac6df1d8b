"""How much a key may use, and how much it has used, in fixed windows: a minute, a UTC day, a UTC month.

A request is counted before it runs: as one request, and as the most tokens that it may take. When the request ends,
unused tokens are returned and its cost is added. The requests of a minute therefore never exceed their limit, however
many gateways count at once. Tokens do not exceed theirs either, if callers state how long an answer may become.
Requests that are running when a budget is reached can exceed it.

Concurrent requests are counted over all gateways too. The requests of a killed gateway count for some seconds longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Period = Literal["minute", "day", "month"]

Count = Annotated[int, Field(ge=1, le=2**53)]
Money = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class KeyLimits(BaseModel):
    """The most that a key may use; None means no limit.

    Attributes:
        budget_per_day, budget_per_month: Maximum cost, in the currency of the gateway's prices.
        max_concurrency: Maximum concurrent requests, over all gateways on one database.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    budget_per_day: Money | None = None
    budget_per_month: Money | None = None
    max_concurrency: Count | None = None

    @property
    def periods(self) -> tuple[Period, ...]:
        """The periods in which usage must be counted."""
        per_minute = self.requests_per_minute or self.tokens_per_minute
        wanted = (("minute", per_minute), ("day", self.budget_per_day), ("month", self.budget_per_month))
        return tuple(period for period, limit in wanted if limit is not None)  # type: ignore[misc]


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class Window:
    """A time window of a limit; times are seconds since 1970."""

    period: Period
    starts_at: int
    ends_at: int


@dataclass(frozen=True, slots=True)
class Used:
    """What a key has used in a window, including its running requests."""

    window: Window
    requests: int = 0
    tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A counted request.

    Attributes:
        tokens: Tokens reserved for the request.
        used: Usage of each window the request was counted in, including the request.
        holds_place: Whether the request counts against the key's `max_concurrency` until it is settled.
    """

    key_id: str
    tokens: int
    used: Mapping[Period, Used]
    holds_place: bool = False


class OverLimit(Exception):
    """The request would exceed a limit and was not counted.

    Attributes:
        limit: Name of the limit, as in `KeyLimits`.
        used: Usage without the request.
    """

    def __init__(self, limit: str, used: Used) -> None:
        super().__init__(limit)
        self.limit = limit
        self.used = used


class TooManyAtOnce(Exception):
    """The key already runs as many requests as it may; this one was not counted."""


def windows_of(limits: KeyLimits, now: datetime) -> tuple[Window, ...]:
    """Return the windows that contain this moment."""
    moment = now.astimezone(UTC)
    return tuple(_window(period, moment) for period in limits.periods)


def check(limits: KeyLimits, used: Used, tokens: int) -> None:
    """Raise `OverLimit` if one more request with up to `tokens` tokens would exceed a limit."""
    match used.window.period:
        case "minute":
            if limits.requests_per_minute is not None and used.requests + 1 > limits.requests_per_minute:
                raise OverLimit("requests_per_minute", used)
            if limits.tokens_per_minute is not None and used.tokens + tokens > limits.tokens_per_minute:
                raise OverLimit("tokens_per_minute", used)
        case "day":
            if limits.budget_per_day is not None and used.cost >= limits.budget_per_day:
                raise OverLimit("budget_per_day", used)
        case "month":
            if limits.budget_per_month is not None and used.cost >= limits.budget_per_month:
                raise OverLimit("budget_per_month", used)


def _window(period: Period, moment: datetime) -> Window:
    start = moment.replace(second=0, microsecond=0)
    end = start + timedelta(minutes=1)
    if period != "minute":
        start = start.replace(hour=0, minute=0)
        end = start + timedelta(days=1)
    if period == "month":
        start = start.replace(day=1)
        end = (start + timedelta(days=32)).replace(day=1)
    return Window(period, int(start.timestamp()), int(end.timestamp()))
