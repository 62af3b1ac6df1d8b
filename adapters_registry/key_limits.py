"""How much a key may use, and how much it has used: fixed windows of a minute, a UTC day and a UTC month.

A request is counted before it runs: one request, and as many tokens as it may take. What it did not take is given back
when it has ended, and its cost is added. So the requests of a minute never exceed their limit, however many gateways
count at once, nor do its tokens as far as callers say how long an answer may become; a budget can be overrun by what
was under way when it was reached.

Requests at once are counted over all gateways, too. One that is killed has its requests counted for some seconds more.
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
    """What a key may use at most; None is no limit.

    Attributes:
        budget_per_day, budget_per_month: In the currency of the gateway's prices.
        max_concurrency: Requests at once, over all gateways on one database.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    budget_per_day: Money | None = None
    budget_per_month: Money | None = None
    max_concurrency: Count | None = None

    @property
    def periods(self) -> tuple[Period, ...]:
        """The windows that must be counted."""
        per_minute = self.requests_per_minute or self.tokens_per_minute
        wanted = (("minute", per_minute), ("day", self.budget_per_day), ("month", self.budget_per_month))
        return tuple(period for period, limit in wanted if limit is not None)  # type: ignore[misc]


NO_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time that limits refer to; seconds since 1970."""

    period: Period
    starts_at: int
    ends_at: int


@dataclass(frozen=True, slots=True)
class Used:
    """What a key has used in a window, what is under way included."""

    window: Window
    requests: int = 0
    tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Reservation:
    """A request that was counted.

    Attributes:
        tokens: What was set aside for it.
        used: The windows that it was counted in, itself included.
        holds_place: Whether it is one of the key's `max_concurrency` until it is settled.
    """

    key_id: str
    tokens: int
    used: Mapping[Period, Used]
    holds_place: bool = False


class OverLimit(Exception):
    """A request that was not counted, for it would exceed a limit.

    Attributes:
        limit: The name of the limit, as in `KeyLimits`.
        used: What had been used without it.
    """

    def __init__(self, limit: str, used: Used) -> None:
        super().__init__(limit)
        self.limit = limit
        self.used = used


class TooManyAtOnce(Exception):
    """A request that was not counted, for its key has as many under way as it may."""


def windows_of(limits: KeyLimits, now: datetime) -> tuple[Window, ...]:
    """The windows that a request at this moment falls into."""
    moment = now.astimezone(UTC)
    return tuple(_window(period, moment) for period in limits.periods)


def check(limits: KeyLimits, used: Used, tokens: int) -> None:
    """Raise `OverLimit` if a further request, with so many tokens, is too much for what was used so far."""
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
