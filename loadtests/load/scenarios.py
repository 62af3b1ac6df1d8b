"""The scenarios of traffic: what is sent, what is broken meanwhile, and what must hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

from bench.stats import percentile

from load.lab import Lab, Site
from load.mix import EVERYTHING
from load.phase import LoadResult
from load.sections import Check, Row, Section, checks_of, goodput_chart, latency_chart, memory_chart
from load.stack import Outage, Stack

DOWN_S = 1.0
AGAIN_S = 3.0
"""What was down must answer again if a phase goes on for so long."""

BURST = 4.0


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of the grid: every combination of these."""

    experts: tuple[int, ...]
    skews: tuple[float, ...]
    words: tuple[int, ...]
    callers: tuple[int, ...]


def grid(lab: Lab, cells: Grid) -> Section:
    """Experts × skew × prompt length × concurrency: closed loop, then an open one at a share of its rate."""
    section = Section(
        "grid",
        "Grid: experts × skew × prompt length × concurrency",
        "Requests by expert name and through the policy, half of each. For each cell a closed loop with so many "
        f"callers gives the saturation rate; then an open loop runs at {lab.options.load_share:.0%} of it, "
        f"{lab.options.repeats} times.",
    )
    for num_experts in cells.experts:
        with lab.site(num_experts, name="grid") as site:
            for skew, words, callers in product(cells.skews, cells.words, cells.callers):
                cell = f"{num_experts} experts, skew {skew:g}, {words} words, {callers} callers"
                mixture = lab.mixture(site, skew=skew, num_words=words, kinds={"expert": 1, "auto": 1})
                closed, per_s = lab.saturation(site, mixture, callers)
                section.rows.append(_named(closed, f"{cell}: closed"))
                for number in range(lab.options.repeats):
                    name = f"{cell}: open" + (f" {number + 1}" if lab.options.repeats > 1 else "")
                    section.rows.append(lab.phase(site, mixture, name, rate=lab.rate(per_s))[0])
    section.checks = checks_of(section.rows)
    section.charts.append(goodput_chart("Grid", [row for row in section.rows if "open" in row.name]))
    return section


def recipes(lab: Lab) -> Section:
    """Every way to name experts at once."""
    section = Section(
        "recipes",
        "Mixed recipes",
        "Base, experts by name and by version, mixes, gates and the policy in one stream of requests "
        f"({_shares()}), at {lab.options.load_share:.0%} of saturation.",
    )
    with lab.site(lab.options.experts, name="recipes") as site:
        mixture = lab.mixture(site)
        _, per_s = lab.saturation(site, mixture)
        _single(lab, section, site, rate=lab.rate(per_s))
    return section


def bursts(lab: Lab) -> Section:
    """The same requests on average, most of them at once."""
    section = Section(
        "bursts",
        "Bursts",
        f"As mixed recipes, but a fifth of the time has {BURST:g} times the average rate, and the rest little.",
    )
    with lab.site(lab.options.experts, name="bursts") as site:
        _, per_s = lab.saturation(site, lab.mixture(site))
        _single(lab, section, site, rate=lab.rate(per_s) / 2, burst=BURST, callers=2000)
    return section


def changes(lab: Lab) -> Section:
    """Experts come, get new versions, and go while they are asked for."""
    section = Section(
        "changes",
        "Registrations and retirements during traffic",
        "As mixed recipes, with two changes of the library a second; a tenth of the requests that name or want one "
        "expert are for experts that change.",
    )
    with lab.site(lab.options.experts, name="changes") as site:
        _, per_s = lab.saturation(site, lab.mixture(site))
        result = _single(lab, section, site, rate=lab.rate(per_s), changes_per_s=2.0)
        tell_changes(section, result)
        section.checks.append(library_check(site, result))
    return section


def engine_killed(lab: Lab) -> Section:
    """The engine is killed during traffic, and comes back."""
    section = Section(
        "engine-killed",
        "Engine killed during traffic",
        f"As mixed recipes, at half that rate; the engine is killed and started again {DOWN_S:g} s later. Failures "
        "between the kill and the moment at which the gateway is ready again are counted apart.",
    )
    with lab.site(lab.options.experts, name="engine") as site:
        stack = _own(site)

        def kill() -> None:
            time.sleep(lab.options.warmup_s + lab.options.seconds / 3)
            stack.kill_engine()
            time.sleep(DOWN_S)
            stack.start_engine()
            stack.back("engine")

        _, per_s = lab.saturation(site, lab.mixture(site))
        result = _single(lab, section, site, rate=lab.rate(per_s) / 2, meanwhile=kill)
        _tell_outages(section, stack.outages, result)
    return section


def gateway_killed(lab: Lab) -> Section:
    """The gateway is killed during traffic and changes, and started again."""
    section = Section(
        "gateway-killed",
        "Gateway killed during traffic and registrations",
        "As registrations during traffic, at half that rate; the gateway gets SIGKILL and is started again. Afterwards "
        "the library must be what was acknowledged.",
    )
    with lab.site(lab.options.experts, name="gateway") as site:
        stack = _own(site)

        def kill() -> None:
            time.sleep(lab.options.warmup_s + lab.options.seconds / 3)
            stack.kill_gateway()
            stack.start_gateway()
            stack.back("gateway")

        _, per_s = lab.saturation(site, lab.mixture(site))
        result = _single(lab, section, site, rate=lab.rate(per_s) / 2, meanwhile=kill, changes_per_s=5.0)
        tell_changes(section, result)
        _tell_outages(section, stack.outages, result)
        section.checks.append(library_check(site, result))
    return section


def _single(lab: Lab, section: Section, site: Site, *, rate: float, **spec: object) -> LoadResult:
    """Run one open loop of every kind of request, and put it into the section."""
    row, result = lab.phase(site, lab.mixture(site), f"open loop, {rate:.1f}/s", rate=rate, **spec)  # type: ignore[arg-type]
    section.rows.append(row)
    section.checks += checks_of(section.rows)
    section.charts.append(latency_chart(section.title, result, site.stack.outages if site.stack else ()))
    if row.usage.at:
        section.charts.append(memory_chart(section.title, row.usage, result.started))
    section.facts += [
        (f"fault: {fault.what}", fault.detail)
        for fault in result.faults
        if fault.what in row.figures.wrong or fault.what in row.figures.unexplained
    ][:10]
    return result


def _named(row: Row, name: str) -> Row:
    return Row(name, row.figures, row.usage)


def _own(site: Site) -> Stack:
    if site.stack is None:
        raise SystemExit("This scenario kills processes, so it needs a gateway of its own: leave --url away.")
    return site.stack


def _shares() -> str:
    return ", ".join(f"{kind} {share:g}" for kind, share in EVERYTHING.items())


def tell_changes(section: Section, result: LoadResult) -> None:
    counts = ", ".join(f"{count} {what}" for what, count in sorted(result.changes.items()))
    section.facts.append(("changes of the library", counts or "none"))
    for what, values in (
        ("until it was acknowledged", result.change_ms),
        ("from then until the policy chose it", result.routable_ms),
    ):
        shown = ", ".join(f"p{q} {percentile(values, q):.0f} ms" for q in (50, 99)) if values else "none"
        section.facts.append((f"a change, {what}", shown))


def _tell_outages(section: Section, outages: Iterable[Outage], result: LoadResult) -> None:
    for outage in outages:
        back = outage.until - result.started
        if back + AGAIN_S < result.seconds:
            num_after = sum(due > back for due in result.due)
            section.checks.append(Check("answers again afterwards", f"{num_after:,} right ones", num_after > 0))
        section.facts.append(
            (f"{outage.what} down, until the gateway was ready", f"{outage.until - outage.since:.1f} s")
        )


def library_check(site: Site, result: LoadResult) -> Check:
    """The library is what was acknowledged."""

    async def ask() -> dict[str, str]:
        client = site.client()
        try:
            return await site.admin(client).library()
        finally:
            client.close()

    found = asyncio.run(ask())
    missing = {name: version for name, version in result.library.items() if found.get(name) != version}
    extra = found.keys() - result.library.keys()
    shown = f"{len(found):,} experts, {len(missing)} missing or other, {len(extra)} too many"
    return Check("the library is what was acknowledged", shown, not missing and not extra)


SCENARIOS: dict[str, Callable[[Lab], Section]] = {
    "recipes": recipes,
    "bursts": bursts,
    "changes": changes,
    "engine-killed": engine_killed,
    "gateway-killed": gateway_killed,
}
