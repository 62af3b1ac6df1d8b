"""When requests are sent in an open loop: times that do not depend on how fast answers come."""

from __future__ import annotations

import random
from typing import Literal

Arrivals = Literal["poisson", "fixed"]


def schedule(kind: Arrivals, rate: float, seconds: float, seed: int) -> list[float]:
    """Send times in seconds from the start, ascending, all below `seconds`.

    Args:
        kind: ``poisson`` draws exponential gaps, as independent callers make them; ``fixed`` spaces evenly.
        rate: Requests a second on average, above 0.
        seconds: Length of the schedule.
        seed: Of the draw; the same seed gives the same schedule.
    """
    if rate <= 0 or seconds <= 0:
        raise ValueError("rate and seconds must be above 0")
    if kind == "fixed":
        times = (index / rate for index in range(int(rate * seconds) + 1))
        return [time for time in times if time < seconds]
    draw = random.Random(seed)
    poisson: list[float] = []
    now = draw.expovariate(rate)
    while now < seconds:
        poisson.append(now)
        now += draw.expovariate(rate)
    return poisson
