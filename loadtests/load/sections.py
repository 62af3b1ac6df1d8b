"""What a scenario found, ready for a report: rows of figures, checks that must hold, charts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.report import show_errors, table
from bench.stats import percentile

from load.figures import Figures, Trend
from load.phase import LoadResult
from load.plots import Chart, Line
from load.stack import Outage
from load.watch import Usage

_NUM_BINS = 120


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold, what was found, and whether it holds."""

    what: str
    found: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One phase under its name."""

    name: str
    figures: Figures
    usage: Usage


@dataclass(slots=True)
class Section:
    """What one scenario found.

    Attributes:
        name: On the command line.
        title: In the report.
        text: What was done.
        rows: Its phases.
        facts: Further figures, as name and value.
        checks: What must hold.
        charts: For the HTML page.
    """

    name: str
    title: str
    text: str
    rows: list[Row] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every check does."""
        return all(check.holds for check in self.checks)

    def tables(self) -> list[tuple[Sequence[str], Sequence[Sequence[str]]]]:
        """Header and rows of each table."""
        found: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = []
        if self.rows:
            found += [
                (SERVICE, [service_row(row) for row in self.rows]),
                (ROUTING, [routing_row(r) for r in self.rows]),
            ]
        if self.facts:
            found.append((("figure", ""), self.facts))
        if self.checks:
            rows = [(check.what, check.found, "holds" if check.holds else "FAILS") for check in self.checks]
            found.append((("check", "found", ""), rows))
        return found

    def markdown(self) -> str:
        """As Markdown."""
        tables = [table(header, rows) for header, rows in self.tables()]
        return "\n\n".join([f"## {self.title}", self.text, *tables])


SERVICE = (
    "phase", "sent", "right/s", "goodput/s", "within SLO", "TTFT p50", "p90", "p99", "per token p50", "p99",
    "driver late p99", "cores", "slot hits",
)  # fmt: skip
ROUTING = (
    "phase", "right", "of them by kind", "404 as it should be", "while changing", "engine says so too", "wrong",
    "unexplained", "injected", "429", "not sent",
)  # fmt: skip


def service_row(row: Row) -> tuple[str, ...]:
    """Times in ms."""
    figures = row.figures
    return (
        row.name,
        f"{figures.num_sent:,}",
        f"{figures.per_s:.1f}",
        f"{figures.goodput_per_s:.1f}",
        _share(figures.good_share),
        *(f"{value:.1f}" for value in figures.ttft_ms),
        f"{figures.tpot_ms[0]:.2f}",
        f"{figures.tpot_ms[2]:.2f}",
        f"{figures.lag_ms:.1f}",
        _known(row.usage.cores_busy, ".2f"),
        _share(row.usage.hit_share),
    )


def routing_row(row: Row) -> tuple[str, ...]:
    """Counts."""
    figures = row.figures
    return (
        row.name,
        f"{figures.num_right.total():,}",
        ", ".join(f"{kind} {count:,}" for kind, count in sorted(figures.num_right.items())),
        f"{figures.num_absent:,}",
        f"{figures.num_changing:,}",
        f"{figures.num_echoed:,}",
        show_errors(figures.wrong),
        show_errors(figures.unexplained),
        show_errors(figures.injected),
        f"{figures.num_limited:,}",
        f"{figures.num_unsent:,}",
    )


def checks_of(rows: Sequence[Row]) -> list[Check]:
    """What holds for every scenario: no wrong expert, and no fault without a reason."""
    wrong = sum((row.figures.wrong for row in rows), Counter[str]())
    unexplained = sum((row.figures.unexplained for row in rows), Counter[str]())
    right = sum(row.figures.num_right.total() for row in rows)
    return [
        Check("no answer by a wrong expert", f"{show_errors(wrong)} of {right + wrong.total():,}", not wrong),
        Check("no failure but injected ones", show_errors(unexplained), not unexplained),
        Check("requests were answered", f"{right:,}", right > 0),
    ]


def latency_chart(title: str, result: LoadResult, outages: Sequence[Outage] = ()) -> Chart:
    """Percentiles of the time to the first token over time."""
    width = max(result.seconds / _NUM_BINS, 0.25)
    bins: dict[int, list[float]] = {}
    for due, ttft in zip(result.due, result.ttft_ms, strict=True):
        bins.setdefault(int(due / width), []).append(ttft)
    numbers = range(max(bins, default=-1) + 1)  # an empty one is a gap in the lines
    x = [(number + 0.5) * width for number in numbers]
    lines = [Line(f"p{q}", x, [percentile(bins.get(number, []), q) for number in numbers]) for q in (50, 90, 99)]
    marks = [(outage.since - result.started, outage.until - result.started) for outage in outages]
    return Chart(f"{title}: time to the first token, ms", "seconds", lines, marks=marks)


def memory_chart(title: str, usage: Usage, started: float, trend: Trend | None = None, trend_from: float = 0) -> Chart:
    """Resident set of the gateway over time, with the line through it."""
    x = [at - started for at in usage.at]
    lines = [Line("resident set", x, usage.rss_mib)]
    if trend is not None and x:
        lines.append(Line("line through it", [trend_from, x[-1]], [trend.start, trend.end]))
    return Chart(f"{title}: memory of the gateway, MiB", "seconds", lines)


def goodput_chart(title: str, rows: Sequence[Row]) -> Chart:
    """Goodput of each phase."""
    bars = [(row.name, row.figures.goodput_per_s) for row in rows]
    return Chart(f"{title}: right answers a second within the SLO", bars=bars)


def _share(value: float) -> str:
    return _known(value * 100, ".1f") + (" %" if value == value else "")


def _known(value: float, form: str) -> str:
    return format(value, form) if value == value else "–"
