"""A comparison as files: every outcome, the leaderboard as Markdown and as JSON, and an HTML page.

They are results.jsonl, leaderboard.md, leaderboard.json and compare.html, which needs nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from adapters_registry.disk.safe_files import replace_file
from routers.base import BASE
from server.compare.run import ORACLE, Outcome
from server.compare.stats import Comparison, Figures, Interval
from server.compare.tasks import Task


@dataclass(frozen=True, slots=True)
class About:
    """Where a comparison comes from, and which policies could not be compared, with the reason."""

    folders: tuple[str, ...]
    split: str
    base: str
    num_prompts: int
    num_skipped: int
    leave_own_out: bool
    made_at: str
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the leaderboard: its title, what it means, how a value is written, and which way is better."""

    key: str
    title: str
    meaning: str
    form: Callable[[Any], str]
    better: str = "high"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def _interval(value: Interval) -> str:
    if math.isnan(value.value):
        return ""
    if math.isnan(value.low):
        return _percent(value.value)
    return f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _number(digits: int) -> Callable[[float], str]:
    return lambda value: "" if math.isnan(value) else f"{value:.{digits}f}"


COLUMNS = (
    Column("policy", "policy", "What callers write in model", str),
    Column("score", "score", "Mean score over tasks with an expert, per cent, with its 95 % interval", _interval),
    Column("normalised", "normalised", "(score - base) / (oracle - base), mean over tasks, per cent", _interval),
    Column("p_value", "p", "Of the difference in score to the best policy (paired permutation test)", _number(3)),
    Column("routed", "right", "Prompts that reached their own expert, per cent", _percent),
    Column("top1", "top-1", "Prompts whose own expert was ranked first, abstained or not, per cent", _percent),
    Column("top3", "top-3", "Prompts whose own expert was among the first three, per cent", _percent),
    Column("regret", "regret", "What the oracle scored more, prompt by prompt, per cent", _percent, "low"),
    Column("abstained_in", "left in", "Prompts with an expert that were left to the base, per cent", _percent, "low"),
    Column("abstained_out", "left out", "Out-of-scope prompts that were left to the base, per cent", _percent),
    Column("auroc", "AUROC", "Confidence tells prompts with an expert from out-of-scope ones", _number(3)),
    Column(
        "calibration_error", "ECE", "Distance of confidence and success (expected calibration error)", _number(3), "low"
    ),
    Column("held_out", "held out", "Score minus the base's on tasks without an expert, in points", _interval),
    Column("num_experts", "experts", "Different experts that were used", str, "none"),
    Column("tokens_per_prompt", "tokens", "Prompt and answer together, mean", _number(0), "low"),
    Column("cost_per_thousand", "cost", "Of a thousand requests, by the given prices", _number(3), "low"),
    Column("route_ms", "route ms", "Median time of the decision, after the embedding", _number(2), "low"),
    Column("embed_ms", "embed ms", "Median time of the embedding", _number(1), "low"),
    Column("ttft_ms", "TTFT ms", "Median time to the first token when the answer was generated", _number(0), "low"),
    Column("ms_per_token", "ms/token", "Median time of each further token then", _number(1), "low"),
)


def cell(figures: Figures, column: Column) -> str:
    """A figure as it is written."""
    return column.form(getattr(figures, column.key))


def ranked(figures: Iterable[Figures]) -> list[Figures]:
    """The oracle first, then by score, the base where it stands."""
    return sorted(figures, key=lambda each: (each.policy != ORACLE, -_known(each.score.value), each.policy))


def write_report(
    folder: Path, comparison: Comparison, outcomes: Sequence[Outcome], tasks: Sequence[Task], about: About
) -> None:
    """Write the four files; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = {(task.name, index): sample for task in tasks for index, sample in enumerate(task.samples)}
    rows = []
    for outcome in outcomes:
        sample = prompts[outcome.task, outcome.index]
        rows.append(orjson.dumps(asdict(outcome) | {"prompt": sample.prompt, "wanted": sample.answer}))
    replace_file(folder / "results.jsonl", b"\n".join(rows) + b"\n")
    replace_file(folder / "leaderboard.md", markdown(comparison, about).encode())
    replace_file(folder / "leaderboard.json", orjson.dumps(board(comparison, about)))
    replace_file(folder / "compare.html", page(comparison, about).encode())


def markdown(comparison: Comparison, about: About) -> str:
    """The leaderboard as Markdown."""
    columns = [column for column in COLUMNS if any(cell(each, column) for each in comparison.figures)]
    lines = [
        f"# Policies on {', '.join(about.folders)} ({about.split})",
        "",
        f"Base {about.base}, {about.num_prompts} prompts, {about.made_at}."
        + (" Each prompt's own expert was hidden from the policies." if about.leave_own_out else "")
        + (f" {about.num_skipped} rows were skipped." if about.num_skipped else ""),
        *(f"\nNot compared: {policy} ({reason})" for policy, reason in about.left_out.items()),
        "",
        "| " + " | ".join(column.title for column in columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for each in ranked(comparison.figures):
        lines.append("| " + " | ".join(cell(each, column) for column in columns) + " |")
    lines += ["", *(f"- **{column.title}**: {column.meaning}." for column in columns[1:]), ""]
    return "\n".join(lines)


def board(comparison: Comparison, about: About) -> dict[str, Any]:
    """The leaderboard as the admin API takes it, without NaN."""
    data = {
        "about": asdict(about),
        "columns": [{"key": c.key, "title": c.title, "meaning": c.meaning, "better": c.better} for c in COLUMNS],
        "rows": [_row(each) for each in ranked(comparison.figures)],
    }
    return {key: _finite(value) for key, value in data.items()}


def page(comparison: Comparison, about: About) -> str:
    """The HTML page, data and script within it."""
    template = files("server.compare").joinpath("page.html").read_text("utf-8")
    data = board(comparison, about) | {
        "tasks": comparison.tasks,
        "by_task": comparison.by_task,
        "confusion": comparison.confusion,
        "calibration": comparison.calibration,
        "coverage": comparison.coverage,
        "names": {"base": BASE, "oracle": ORACLE},
    }
    # "<" never stands in the script as it is, so that no answer or name can end it
    return template.replace("__DATA__", orjson.dumps(_finite(data)).decode().replace("<", "\\u003c"))


def _row(figures: Figures) -> dict[str, Any]:
    shown = {column.key: cell(figures, column) for column in COLUMNS}
    values = {column.key: _value(getattr(figures, column.key)) for column in COLUMNS}
    return {"shown": shown, "values": values}


def _value(value: Any) -> Any:
    return value.value if isinstance(value, Interval) else value


def _finite(value: Any) -> Any:
    """The same without NaN, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value


def _known(value: float) -> float:
    return -1.0 if math.isnan(value) else value
