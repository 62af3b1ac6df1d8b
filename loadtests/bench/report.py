"""The report in Markdown: how it was measured, two tables, and the aims with what was reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.cases import BARE, DIRECT, FRESH, OFF, Capacity, Case, Latency, share_of
from bench.stats import Spread

AIM_SHARE = 70.0
AIM_OVERHEAD_P50_MS = 2.0
AIM_OVERHEAD_P99_MS = 10.0
AIM_FRESH_P50_MS = 8.0


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured.

    Attributes:
        setup: What is known of the run, as name and value.
        capacity: Closed loop, by case.
        latency: Open loop, by case.
        notes: What was left out, and why.
    """

    setup: Mapping[str, str]
    capacity: Mapping[Case, Capacity]
    latency: Mapping[Case, Latency]
    notes: Sequence[str]

    def markdown(self) -> str:
        """The whole report."""
        parts = [
            "\n".join(f"- {name}: {value}" for name, value in self.setup.items()),
            "Closed loop, as fast as it goes:",
            self._capacity_table(),
            "Open loop, times in ms from the intended moment of sending:",
            self._latency_table(),
            "Aims:",
            table(("aim", "answers", "reached", ""), self._aims()),
            *self.notes,
        ]
        return "\n\n".join(parts) + "\n"

    def _capacity_table(self) -> str:
        header = (
            "target", "answers", "req/s", "cores busy", "req/s per core", "% of bare proxy", "peak RSS, MiB", "errors",
        )  # fmt: skip
        rows = []
        for case, figures in self.capacity.items():
            cells = (
                Spread.of(figures.per_s).show(0),
                Spread.of(figures.cores).show(2),
                Spread.of(figures.per_core).show(0),
                self._share(case).show(0),
                f"{figures.peak_rss_mib:.0f}",
                show_errors(figures.errors),
            )
            rows.append((case.target.name, case.answers, *cells))
        return table(header, rows)

    def _latency_table(self) -> str:
        header = (
            "target", "answers", "req/s sent", "p50", "p90", "p99", "TTFT p50", "TTFT p99",
            "overhead p50", "overhead p99", "its own figure p50", "p99", "req/s per core", "errors",
        )  # fmt: skip
        rows = []
        for case, figures in self.latency.items():
            times = [figures.p50, figures.p90, figures.p99]
            ttft = [figures.ttft_p50, figures.ttft_p99] if case.stream else [[], []]
            own = [figures.own_p50, figures.own_p99]
            overhead = [figures.overhead_p50, figures.overhead_p99]
            shown = [Spread.of(values).show(2) for values in (*times, *ttft, *overhead, *own)]
            per_core = Spread.of(figures.per_core).show(0)
            errors = show_errors(figures.errors)
            rows.append((case.target.name, case.answers, f"{figures.rate:.0f}", *shown, per_core, errors))
        return table(header, rows)

    def _share(self, case: Case) -> Spread:
        floors = [f.per_core for c, f in self.capacity.items() if c.target.name == BARE and c.stream == case.stream]
        if not floors or case.target.name == DIRECT:
            return Spread.of([])
        return share_of(self.capacity[case].per_core, floors[0])

    def _aims(self) -> list[tuple[str, ...]]:
        rows = []
        for case in self.capacity:
            if case.target.name == OFF:
                aim = f"routing off: at least {AIM_SHARE:g} % of the bare proxy's req/s per core"
                rows.append(_verdict(aim, case, self._share(case), AIM_SHARE, "%", at_least=True))
        for case, figures in self.latency.items():
            if case.target.name == OFF:
                p50, p99 = Spread.of(figures.overhead_p50), Spread.of(figures.overhead_p99)
                aim = f"routing off: overhead p50 at most {AIM_OVERHEAD_P50_MS:g} ms"
                rows.append(_verdict(aim, case, p50, AIM_OVERHEAD_P50_MS, "ms"))
                aim = f"routing off: overhead p99 at most {AIM_OVERHEAD_P99_MS:g} ms"
                rows.append(_verdict(aim, case, p99, AIM_OVERHEAD_P99_MS, "ms"))
            elif case.target.name == FRESH:
                aim = f"fresh prompts: overhead p50 at most {AIM_FRESH_P50_MS:g} ms"
                rows.append(_verdict(aim, case, Spread.of(figures.overhead_p50), AIM_FRESH_P50_MS, "ms"))
        return rows


def _verdict(
    aim: str, case: Case, reached: Spread, limit: float, unit: str, *, at_least: bool = False
) -> tuple[str, ...]:
    met = reached.median >= limit if at_least else reached.median <= limit
    digits = 0 if unit == "%" else 2
    return aim, case.answers, f"{reached.show(digits)} {unit}", "met" if met else "**missed**"


def show_errors(errors: Counter[str]) -> str:
    """Count by kind, most frequent first; ``0`` if there were none."""
    return ", ".join(f"{count} × {kind}" for kind, count in errors.most_common()) or "0"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
