"""The long run: laps at a share of the saturation rate, with changes of the library; memory must stay flat.

Every lap measures the saturation rate anew, so that it is a share of what the machine can do then: others may use it.
"""

from __future__ import annotations

from dataclasses import replace

from bench.stats import percentile

from load.figures import Trend
from load.lab import Lab, Site
from load.phase import LoadResult
from load.scenarios import library_check, tell_changes
from load.sections import Check, Row, Section, checks_of, latency_chart, memory_chart
from load.watch import Usage, watching

MAX_GROWTH = 0.03
"""Of the gateway's memory along the line through it, over the last three quarters."""

MAX_FD_GROWTH = 32
CHANGES_PER_S = 0.5
LAP_S = 120.0
JUDGED_FROM_S = 300.0
"""A shorter run says nothing of memory."""


def soak(lab: Lab, seconds: float) -> Section:
    """As the module says."""
    num_laps = max(1, round(seconds / LAP_S))
    section = Section(
        "soak",
        "Soak",
        f"{num_laps} laps of {seconds / num_laps:g} s. Each measures the saturation rate in a closed loop, then runs "
        f"mixed recipes in an open loop at {lab.options.load_share:.0%} of it, with a change of the library every two "
        "seconds. The line through the gateway's memory is fitted after the first quarter, in which caches fill; it "
        f"may rise by {MAX_GROWTH:.0%} until the end.",
    )
    with lab.site(lab.options.experts, name="soak") as site:
        num_stable = len(site.library)
        if site.stack is None:
            total, usage = _laps(lab, section, site, num_stable, num_laps, seconds / num_laps), Usage()
        else:
            with watching(site.stack, every_s=min(1.0, seconds / 60)) as usage:
                total = _laps(lab, section, site, num_stable, num_laps, seconds / num_laps)
        section.checks += [*checks_of(section.rows), library_check(site, total)]
        tell_changes(section, total)
        section.charts.append(latency_chart("Soak", total))
        if usage.at:
            _tell_memory(section, usage, total.started)
    _tell_totals(section)
    return section


def _laps(lab: Lab, section: Section, site: Site, num_stable: int, num_laps: int, lap_s: float) -> LoadResult:
    """Run them; returns all open loops as one result whose clock goes on through the closed ones."""
    mixture = replace(lab.mixture(site), num_experts=num_stable)
    total: LoadResult | None = None
    for number in range(1, num_laps + 1):
        closed, per_s = lab.saturation(site, mixture)
        section.rows.append(Row(f"{number}: closed", closed.figures, closed.usage))
        rate = lab.rate(per_s)
        row, result = lab.phase(
            site, mixture, f"{number}: {rate:.0f}/s", rate=rate, seconds=lap_s, changes_per_s=CHANGES_PER_S
        )
        section.rows.append(row)
        site.library = result.library
        total = _joined(total, result) if total else result
    assert total is not None  # noqa: S101
    return total


def _joined(total: LoadResult, lap: LoadResult) -> LoadResult:
    offset = lap.started - total.started
    for name in ("ttft_ms", "tpot_ms", "total_ms", "lag_ms", "change_ms", "routable_ms"):
        getattr(total, name).extend(getattr(lap, name))
    total.due.extend(due + offset for due in lap.due)
    total.changes = {
        what: total.changes.get(what, 0) + lap.changes.get(what, 0) for what in total.changes | lap.changes
    }
    return replace(total, seconds=offset + lap.seconds, library=lap.library)


def _tell_totals(section: Section) -> None:
    figures = [row.figures for row in section.rows]
    section.facts[:0] = [
        ("answers by the right experts", f"{sum(each.num_right.total() for each in figures):,}"),
        ("of which the engine itself said so", f"{sum(each.num_echoed for each in figures):,}"),
        ("404 as it should be", f"{sum(each.num_absent for each in figures):,}"),
        ("wrong", f"{sum(each.wrong.total() for each in figures):,}"),
        ("failed without a reason", f"{sum(each.unexplained.total() for each in figures):,}"),
    ]


def _tell_memory(section: Section, usage: Usage, started: float) -> None:
    since = usage.at[0] + (usage.at[-1] - usage.at[0]) / 4
    first = next(number for number, at in enumerate(usage.at) if at >= since)
    trend = Trend.of(usage.at[first:], usage.rss_mib[first:])
    shown = (
        f"{trend.start:.1f} → {trend.end:.1f} MiB ({trend.growth:+.1%}), {trend.per_hour:+.1f} ± "
        f"{trend.per_hour_error:.1f} MiB an hour"
    )
    fds = usage.fds[first:]
    quarter = max(1, len(fds) // 4)
    grown = percentile(fds[-quarter:], 50) - percentile(fds[:quarter], 50)
    checks = [
        Check(f"memory grows by at most {MAX_GROWTH:.0%}", shown, trend.growth <= MAX_GROWTH),
        Check(
            f"open files grow by at most {MAX_FD_GROWTH}",
            f"{min(fds)} to {max(fds)}, {grown:+.0f} from the first quarter's median to the last's",
            grown <= MAX_FD_GROWTH,
        ),
    ]
    if usage.at[-1] - usage.at[0] >= JUDGED_FROM_S:
        section.checks += checks
    else:
        section.facts += [(f"{check.what}: too short to judge", check.found) for check in checks]
    section.facts.append(("gateway's cores busy", f"{usage.cores_busy:.2f}"))
    section.charts.append(memory_chart("Soak", usage, started, trend, since - started))
