"""Nothing lost: random changes of the library; gateway, engine and PostgreSQL are killed at random moments.

Workers register, replace, promote, roll back and remove experts, each its own ones, one order after the other. A killer
sends SIGKILL at random moments. After every restart, and at the end, the library must be what was acknowledged; an
order that was not acknowledged may have been carried out or not, but nothing in between: the files of everything that
is listed are read and must be exactly what was sent.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from bench.client import Client
from bench.stats import percentile

from load.adapters import Template, name_of
from load.admin import UNKNOWN, Admin, Refused
from load.lab import Lab
from load.ledger import MAX_PROBLEMS, WEIGHTS_FILE, Ledger
from load.sections import Check, Section
from load.stack import Stack

NAMES_PER_WORKER = 8
DATABASE_AWAY_S = 2.0
"""Longest time between the database's kill and its start."""

UNAVAILABLE = 503


@dataclass(frozen=True, slots=True)
class Storm:
    """How much happens.

    Attributes:
        num_orders: Changes that are acknowledged, or whose fate was found out, in all.
        max_seconds: No new ones after so long.
        num_workers: That change the library at once.
        uptime_s: Of the gateway between two kills, on average.
        engine_share: Of the kills that hit the engine instead.
        database_share: And of those that hit the database, which is a PostgreSQL then; 0 for one in the gateway.
        seed: Of everything that is drawn.
    """

    num_orders: int
    max_seconds: float
    num_workers: int
    uptime_s: float
    engine_share: float
    database_share: float
    seed: int


class Durability:
    """Runs a storm on a stack; use it once."""

    def __init__(self, stack: Stack, storm: Storm, on_order: Callable[[int], None]) -> None:
        self._stack = stack
        self._storm = storm
        self._on_order = on_order
        self._random = random.Random(storm.seed)
        self._template = Template.load(None)
        self._client = Client(stack.port)
        self._admin = Admin(self._client, self._template)
        self.ledger = Ledger()
        self._up = asyncio.Event()
        self._up.set()
        self._num_started = 0
        self._started = 0.0
        self._seed = storm.seed * 10_000_000
        self._database_back_at = 0.0
        self.num_done = 0
        self.num_unknown = 0
        self.orders: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.restart_s: list[float] = []
        self.seconds = 0.0

    async def run(self) -> None:
        """Until all orders are done, then look once more."""
        self._started = time.perf_counter()
        killer = asyncio.create_task(self._kill())
        async with asyncio.TaskGroup() as group:
            for number in range(self._storm.num_workers):
                group.create_task(self._work(number))
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)
        await self._up.wait()
        self.seconds = time.perf_counter() - self._started
        await self._look("at the end")
        await self._restart("gateway")
        await self._look("after a last kill")
        self._client.close()

    # -- orders -------------------------------------------------------------------------------------------------

    async def _work(self, number: int) -> None:
        indexes = range(number * NAMES_PER_WORKER, (number + 1) * NAMES_PER_WORKER)
        while self._goes_on():
            self._num_started += 1
            await self._up.wait()
            await self._change(self._random.choice(indexes))
            self.num_done += 1
            self._on_order(self.num_done)

    def _goes_on(self) -> bool:
        is_in_time = time.perf_counter() - self._started < self._storm.max_seconds
        return is_in_time and self._num_started < self._storm.num_orders and len(self.ledger.problems) < MAX_PROBLEMS

    async def _change(self, index: int) -> None:
        name = name_of(index)
        version = self.ledger.begin(name)
        what = self._choose(name, version)
        began = time.perf_counter()
        try:
            made = await self._order(what, index)
        except UNKNOWN:
            self.num_unknown += 1
            await self._settle(name)
        except Refused as refused:
            if refused.status == UNAVAILABLE and began < self._database_back_at:
                self.num_unknown += 1  # its connection may have broken after the commit
            else:
                self.ledger.note(f"{what} of {name} refused: {refused}")
            await self._settle(name)
        else:
            self.orders[what] += 1
            self.ledger.acknowledge(name, made)

    def _choose(self, name: str, version: str | None) -> str:
        if version is None:
            return "register"
        rollback = 0.1 if self.ledger.has_earlier(name) else 0.0
        return self._random.choices(["new version", "promote", "remove", "rollback"], [0.3, 0.25, 0.35, rollback])[0]

    async def _order(self, what: str, index: int) -> str | None:
        """Give an order; returns the version that its name then stands for."""
        name = name_of(index)
        if what == "remove":
            await self._admin.remove(name)
            return None
        if what == "rollback":
            return await self._admin.rollback(name)
        self._seed += 1
        self.ledger.send(name, self._template.files(self._seed)[WEIGHTS_FILE])
        if what != "promote":
            return await self._admin.register(index, self._seed)
        version = await self._admin.register(index, self._seed, held=True)
        await self._admin.promote(f"{name}@{version}")
        return version

    async def _settle(self, name: str) -> None:
        """Find out what has become of an order without an answer."""
        while True:
            await self._up.wait()
            try:
                version = await self._admin.version(name)
                break
            except (Refused, *UNKNOWN):
                await asyncio.sleep(0.05)
        self.ledger.settle(name, version)

    # -- kills --------------------------------------------------------------------------------------------------

    async def _kill(self) -> None:
        """Kill one or the other at random moments."""
        while True:
            await asyncio.sleep(self._random.expovariate(1 / self._storm.uptime_s))
            lot = self._random.random()
            if lot < self._storm.engine_share:
                await self._restart("engine")
                continue
            what = "database" if lot < self._storm.engine_share + self._storm.database_share else "gateway"
            await self._restart(what)
            await self._look(f"after kill {self.kills[what]} of the {what}")

    async def _restart(self, what: str) -> None:
        """Kill and start again; no cancellation in between, or the rest would find it down."""
        self.kills[what] += 1
        await asyncio.shield(asyncio.create_task(self._restart_whole(what)))

    async def _restart_whole(self, what: str) -> None:
        stack = self._stack
        if what == "engine":
            stack.kill_engine()
            await asyncio.to_thread(stack.start_engine)
            await asyncio.to_thread(stack.back, what)
            return
        if what == "database":
            self._database_back_at = math.inf
            await asyncio.to_thread(stack.kill_database)
            await asyncio.sleep(self._random.uniform(0.0, DATABASE_AWAY_S))
            await asyncio.to_thread(stack.start_database)
            await asyncio.to_thread(stack.back, what)
            self._database_back_at = time.perf_counter()
            return
        self._up.clear()
        stack.kill_gateway()
        started = time.perf_counter()
        await asyncio.to_thread(stack.start_gateway)
        stack.back(what)
        self.restart_s.append(time.perf_counter() - started)
        self._up.set()

    # -- looking ------------------------------------------------------------------------------------------------

    async def _look(self, when: str) -> None:
        """The library against what is expected; names with an order under way are left to their worker."""
        before = self.ledger.certain()
        try:
            records = await self._admin.records()
        except (Refused, *UNKNOWN):
            return  # killed again: the next look will tell
        await self.ledger.compare(when, before, records, self._stack.home / "adapters")


def durability(lab: Lab, storm: Storm) -> Section:
    """Nothing that was acknowledged is lost, and nothing is half-made."""
    victims = f"the gateway, or ({storm.engine_share:.0%}) the engine"
    if storm.database_share:
        victims += f", or ({storm.database_share:.0%}) all processes of the database, a PostgreSQL"
    section = Section(
        "durability",
        "Nothing lost",
        f"Registrations, new versions, promotions, rollbacks and removals by {storm.num_workers} workers, each with "
        f"{NAMES_PER_WORKER} names. About every {storm.uptime_s:g} s SIGKILL hits {victims}. After each restart of "
        "gateway or database the library is compared with what was acknowledged, and the files of everything listed "
        "with what was sent.",
    )
    with lab.site(0, name="durability", postgresql=storm.database_share > 0) as site:
        if site.stack is None:
            raise SystemExit("This scenario kills processes, so it needs a gateway of its own: leave --url away.")
        stack = site.stack

        started = time.perf_counter()

        def progress(num_done: int) -> None:
            if num_done % max(1, storm.num_orders // 50) == 0:
                bar = "#" * round(20 * num_done / storm.num_orders)
                per_s = num_done / (time.perf_counter() - started)
                lab.say(f"durability: [{bar:<20}] {num_done:,} of {storm.num_orders:,} orders, {per_s:.1f} a second")

        async def run() -> Durability:
            found = Durability(stack, storm, progress)
            await found.run()
            return found

        found = asyncio.run(run())
    restarts, problems = found.restart_s, found.ledger.problems
    section.facts = [
        ("acknowledged", ", ".join(f"{count:,} × {what}" for what, count in sorted(found.orders.items()))),
        ("without an answer", f"{found.num_unknown:,}, of which {found.ledger.num_carried_out:,} had been carried out"),
        ("killed", ", ".join(f"{what} {count:,} times" for what, count in sorted(found.kills.items()))),
        ("orders", f"{found.num_done:,} of {storm.num_orders:,}, in {found.seconds:.0f} s"),
        ("orders a second", f"{found.num_done / found.seconds:.1f}, kills and restarts included"),
        ("restart of the gateway", f"p50 {percentile(restarts, 50):.1f} s, p99 {percentile(restarts, 99):.1f} s"),
        *(("problem", text) for text in problems),
    ]
    section.checks = [
        Check(
            "everything acknowledged is there, nothing half-made",
            f"{len(problems)} problems",
            not problems,
        ),
        Check("orders were acknowledged", f"{found.orders.total():,}", found.orders.total() > 0),
    ]
    return section
