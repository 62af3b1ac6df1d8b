"""Labelled prompts from JSON Lines, read strictly: every unusable row is reported with its line and the reason.

One object a line: ``prompt`` and ``answer``, and optionally ``task`` (or ``expert``) and ``metric``. Other fields are
ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from routers.base import Sample
from routers.errors import BadSamples
from routers.evaluation.answer_metrics import metric_names

MAX_PROMPT_CHARS = 400_000
MAX_ANSWER_CHARS = 100_000


@dataclass(frozen=True, slots=True)
class BadRow:
    """An unusable row: its line, counted from one, and what is wrong with it."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}"


def parse_samples(lines: Iterable[str], default_task: str = "") -> tuple[list[Sample], list[BadRow]]:
    """Return the good rows and the bad ones; empty lines are skipped."""
    samples, bad = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            samples.append(_sample(json.loads(line), default_task))
        except json.JSONDecodeError as error:
            bad.append(BadRow(number, f"not JSON ({error.msg}, column {error.colno})"))
        except (RecursionError, ValueError) as error:
            bad.append(BadRow(number, str(error)))
    return samples, bad


def read_samples(path: Path, default_task: str = "", *, skip_bad: bool = False) -> tuple[list[Sample], list[BadRow]]:
    """Read the rows of a file; raises `BadSamples` if it cannot be read, or has bad rows and not `skip_bad`."""
    try:
        samples, bad = parse_samples(path.read_text("utf-8-sig").split("\n"), default_task)
    except (OSError, UnicodeDecodeError) as error:
        raise BadSamples(f"{path} cannot be read: {error}") from None
    if bad and not skip_bad:
        listed = "; ".join(map(str, bad[:5])) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise BadSamples(f"{path} has {len(bad)} bad rows ({listed}). Fix them, or skip them with --skip-bad-rows")
    return samples, bad


def _sample(row: object, default_task: str) -> Sample:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object with 'prompt' and 'answer'")
    prompt = _text(row, "prompt", None, MAX_PROMPT_CHARS)
    answer = _text(row, "answer", None, MAX_ANSWER_CHARS)
    task = _text(row, "task" if "task" in row else "expert", default_task, 200)
    metric = _text(row, "metric", "exact_match", 100)
    if not prompt.strip():
        raise ValueError("'prompt' is empty")
    if metric not in metric_names():
        raise ValueError(f"there is no metric {metric!r}; known are {', '.join(metric_names())}")
    return Sample(prompt, answer, task, metric)


def _text(row: dict[str, object], field: str, default: str | None, max_chars: int) -> str:
    value = row.get(field, default)
    if not isinstance(value, str):
        raise ValueError(f"'{field}' is missing" if value is None else f"'{field}' must be a text")
    if len(value) > max_chars:
        raise ValueError(f"'{field}' has {len(value)} characters; at most {max_chars} are allowed")
    return value
