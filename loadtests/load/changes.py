"""Changes of the library while it is used: experts come, get new versions, and go, one order after the other."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from load.adapters import name_of
from load.admin import UNKNOWN, Admin, Refused
from load.mix import Draw
from load.phase import Fault, LoadResult
from load.timeline import Timeline

ROUTABLE_PATIENCE_S = 30.0
_RETRY_S = 0.1


class Changes:
    """Changes the library until it is cancelled.

    Args:
        admin: Carries orders out.
        timeline: Learns of them.
        draw: Asks for the experts that change.
        result: Gets the figures.
        policy: The policy that should follow.
        indexes: The experts that come and go.
        per_s: Orders a second, at random moments.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        admin: Admin,
        timeline: Timeline,
        draw: Draw,
        result: LoadResult,
        *,
        policy: str,
        indexes: list[int],
        per_s: float,
        seed: int,
    ) -> None:
        self._admin = admin
        self._timeline = timeline
        self._draw = draw
        self._result = result
        self._policy = policy
        self._indexes = indexes
        self._per_s = per_s
        self._random = random.Random(seed)
        self._done: Counter[str] = Counter()
        self._seed = seed * 1_000_000
        self._watching: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def run(self) -> None:
        """Change and change again; ends after the order under way once `stop` was called."""
        due = time.perf_counter()
        while not self._stopped:
            due += self._random.expovariate(self._per_s)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await self._change(self._random.choice(self._indexes))
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._result.changes = dict(self._done)

    def stop(self) -> None:
        """No more changes."""
        self._stopped = True

    async def _change(self, index: int) -> None:
        name = name_of(index)
        was = self._timeline.now(name)
        self._draw.routable.discard(index)
        if index not in self._draw.changing:
            self._draw.changing.append(index)
        removes = was is not None and self._random.random() < 0.5
        began = time.perf_counter()
        self._timeline.begin(name, began)
        try:
            version = await self._order(index, removes=removes)
        except Refused as refused:
            self._fault(began, f"order refused: {refused.status}", str(refused))
            version = await self._ask(name)
        except UNKNOWN as error:
            self._fault(began, "order without an answer", type(error).__name__)
            version = await self._ask(name)
        else:
            self._done["removed" if removes else "registered" if was is None else "new version"] += 1
            self._result.change_ms.append((time.perf_counter() - began) * 1000)
        self._timeline.end(name, version, time.perf_counter())
        if version is not None:
            task = asyncio.create_task(self._watch(index, version))
            self._watching.add(task)
            task.add_done_callback(self._watching.discard)

    async def _order(self, index: int, *, removes: bool) -> str | None:
        if removes:
            await self._admin.remove(name_of(index))
            return None
        self._seed += 1
        return await self._admin.register(index, self._seed)

    async def _ask(self, name: str) -> str | None:
        """What has become of an order that was not answered, as soon as somebody can say it."""
        while True:
            try:
                return await self._admin.version(name)
            except (Refused, *UNKNOWN):
                await asyncio.sleep(_RETRY_S)

    async def _watch(self, index: int, version: str) -> None:
        """Let the policy be asked for a new version once it knows it."""
        try:
            waited_s = await self._admin.wait_routable(self._policy, index, version, ROUTABLE_PATIENCE_S)
        except (Refused, *UNKNOWN):
            return
        if self._timeline.now(name_of(index)) == version and not self._timeline.is_changing(name_of(index)):
            if waited_s is None:
                self._fault(time.perf_counter(), "registered, but not routable in time", f"{name_of(index)}@{version}")
            else:
                self._result.routable_ms.append(waited_s * 1000)
                self._draw.routable.add(index)

    def _fault(self, began: float, what: str, detail: str) -> None:
        self._result.num_faults += 1
        self._result.faults.append(Fault(began, time.perf_counter(), what, "admin", detail[:300]))
