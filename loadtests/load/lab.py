"""Where scenarios run: it starts gateways, fills libraries, and runs phases, each in a driver process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.client import Client
from bench.processes import Children, moergate_command

from load.adapters import Template, name_of
from load.admin import Admin, register_all
from load.figures import Figures, Slo
from load.mix import Mixture
from load.phase import Address, LoadResult, LoadSpec
from load.postgres import Postgres
from load.sections import Row
from load.stack import EngineOptions, Stack
from load.watch import Usage, watching

PARALLEL_REGISTRATIONS = 8
MAX_UNDER_WAY = 250
"""Less than the gateway's default max_concurrency plus queue, more than a healthy gateway needs."""

ROUTABLE_PATIENCE_S = 120.0
_FOLDER = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class LabOptions:
    """The command line, as far as several scenarios need it.

    Attributes:
        remote: A gateway that runs already; None starts one in front of a fake engine for each scenario.
        seconds, warmup_s: Of a measured part, and before it.
        repeats: Times that each cell of the grid is measured.
        experts: Size of the library.
        skew, num_words, num_tokens: See `Mixture`.
        callers: Of closed loops.
        load_share: Of the saturation rate, for open loops.
        rate: Requests a second of open loops instead.
        slo: What counts as good.
        engine: The fake engine.
        gateway_arguments: More for ``moergate serve``.
        gateway_cores: Processors for the gateway alone.
        seed: Of everything that is drawn.
    """

    remote: Address | None
    seconds: float
    warmup_s: float
    repeats: int
    experts: int
    skew: float
    num_words: int
    num_tokens: int
    callers: int
    load_share: float
    rate: float | None
    slo: Slo
    engine: EngineOptions
    gateway_arguments: tuple[str, ...]
    gateway_cores: frozenset[int] | None
    seed: int


@dataclass(slots=True)
class Site:
    """A gateway with a library.

    Attributes:
        address: Where it is.
        library: Name to version of the experts that were registered first.
        stack: Its processes, if they are ours.
        secrets: API keys that were made for it, by name.
    """

    address: Address
    library: dict[str, str]
    stack: Stack | None
    secrets: dict[str, str] = field(default_factory=dict)

    def admin(self, client: Client) -> Admin:
        """Orders over these connections."""
        template = Path(self.address.template) if self.address.template else None
        return Admin(client, Template.load(template))

    def client(self) -> Client:
        """Connections to it."""
        return Client(self.address.port, self.address.host, self.address.key, tls=self.address.tls)


@dataclass(slots=True)
class Lab:
    """See the module's docstring.

    Args:
        options: The command line.
        children: Ends every process.
        folder: For logs, homes and what passes between processes.
        say: Shows progress.
    """

    options: LabOptions
    children: Children
    folder: Path
    say: Callable[[str], None]
    _num: int = field(default=0, init=False)

    @contextlib.contextmanager
    def site(
        self, num_experts: int, *, keys: Mapping[str, list[str]] | None = None, name: str = "", postgresql: bool = False
    ) -> Iterator[Site]:
        """A gateway with so many experts that its policy knows; ours are fresh, and ended after the block.

        Args:
            num_experts: Registered through the admin API, numbered from 0.
            keys: API keys that are made first, as options of ``moergate keys create``; only for gateways of ours.
            name: For the folder.
            postgresql: Give the gateway a PostgreSQL of its own; not together with `keys`.
        """
        if self.options.remote is not None:
            yield from self._filled(Site(self.options.remote, {}, None), num_experts)
            return
        self._num += 1
        folder = self.folder / f"{self._num}-{name}"
        folder.mkdir()
        secrets = {label: create_key(folder / "home", label, given) for label, given in (keys or {}).items()}
        options = self.options
        database = Postgres(folder / "pg") if postgresql else None
        stack = Stack(self.children, folder, options.engine, options.gateway_arguments, options.gateway_cores, database)
        try:
            address = Address(stack.port, key=secrets.get("admin"))
            yield from self._filled(Site(address, {}, stack, secrets), num_experts)
        finally:
            stack.gateway.stop()
            stack.engine.stop()
            if database is not None:
                database.stop()

    def _filled(self, site: Site, num_experts: int) -> Iterator[Site]:
        asyncio.run(_fill(site, num_experts))
        try:
            yield site
        finally:
            if site.stack is None:
                asyncio.run(_empty(site))

    def mixture(self, site: Site, **changes: Any) -> Mixture:
        """The usual requests, changed in some ways."""
        options = self.options
        usual = Mixture(len(site.library), options.skew, num_words=options.num_words, num_tokens=options.num_tokens)
        return replace(usual, **changes)

    def saturation(self, site: Site, mixture: Mixture, callers: int | None = None) -> tuple[Row, float]:
        """A closed loop: its row, and right answers a second."""
        row, result = self.phase(site, mixture, "closed loop", rate=None, callers=callers or self.options.callers)
        return row, len(result.due) / result.seconds

    def rate(self, saturation_per_s: float) -> float:
        """Of an open loop at the usual share of a saturation rate, or as the command line says."""
        return self.options.rate or max(1.0, saturation_per_s * self.options.load_share)

    def phase(
        self,
        site: Site,
        mixture: Mixture,
        name: str,
        *,
        rate: float | None,
        callers: int = MAX_UNDER_WAY,
        meanwhile: Callable[[], None] = lambda: None,
        **spec: Any,
    ) -> tuple[Row, LoadResult]:
        """Run a phase; `meanwhile` runs in a thread beside it."""
        self._num += 1
        options = self.options
        seconds = spec.pop("seconds", options.seconds)
        order = LoadSpec(
            site.address, mixture, site.library, seconds, spec.pop("warmup_s", options.warmup_s), rate, callers,
            seed=options.seed * 1000 + self._num, **spec,
        )  # fmt: skip
        self.say(f"{name}: {seconds:g} s" + (f" at {rate:.1f} requests/s" if rate else f", {callers} callers"))
        outages = site.stack.outages if site.stack else []
        outages.clear()
        beside = threading.Thread(target=meanwhile, daemon=True)
        with self._watched(site, seconds) as usage:
            result = self._drive(order, beside.start)
            beside.join()
        return Row(name, Figures.of(result, options.slo, outages), usage), result

    @contextlib.contextmanager
    def _watched(self, site: Site, seconds: float) -> Iterator[Usage]:
        if site.stack is None:
            yield Usage()
            return
        with watching(site.stack, every_s=min(1.0, seconds / 20)) as usage:
            yield usage

    def _drive(self, spec: LoadSpec, on_start: Callable[[], None]) -> LoadResult:
        spec_file, result_file = (self.folder / f"{self._num}-{name}.json" for name in ("spec", "result"))
        spec_file.write_bytes(spec.dump())
        spec_file.chmod(0o600)
        environment = os.environ | {"PYTHONPATH": str(_FOLDER)}
        command = [sys.executable, "-m", "load.driver", str(spec_file), str(result_file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as driver:
            try:
                assert driver.stdout is not None  # noqa: S101
                driver.stdout.readline()
                on_start()
                status = driver.wait(spec.warmup_s + 2 * spec.seconds + spec.patience_s + 120)
            except BaseException:
                driver.kill()
                raise
        if status:
            raise SystemExit(f"The driver ended with status {status}; what it wrote is above.")
        result = LoadResult.load(result_file.read_bytes())
        result_file.unlink()
        return result


def create_key(home: Path, name: str, arguments: list[str]) -> str:
    """Make an API key in a home folder, with ``moergate keys create``; returns its secret."""
    command = [*moergate_command(), "keys", "create", name, "--home", str(home), "--json", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return str(json.loads(done.stdout)["key"])


async def _fill(site: Site, num_experts: int) -> None:
    client = site.client()
    admin = site.admin(client)
    site.library = await register_all(admin, range(num_experts), PARALLEL_REGISTRATIONS)
    for index in {0, num_experts // 2, num_experts - 1} if num_experts else ():
        version = site.library[name_of(index)]
        if await admin.wait_routable(site.address.policy, index, version, ROUTABLE_PATIENCE_S) is None:
            raise SystemExit(
                f"The policy {site.address.policy!r} does not choose {name_of(index)} for its own example prompts; the "
                "load tests need a policy that reads prompts, such as knn, and an embedder that tells them apart."
            )
    client.close()


async def _empty(site: Site) -> None:
    """Remove what load tests registered on a gateway that goes on."""
    client = site.client()
    admin = site.admin(client)
    for name in await admin.library():
        await admin.remove(name)
    client.close()
