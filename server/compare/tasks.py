"""Labelled prompts from a folder: ``DIR/<task>/<split>.jsonl``, or ``DIR/<task>.jsonl``."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from routers.base import Sample
from routers.errors import BadSamples
from routers.samples import read_samples


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        expert: Id of the expert that it belongs to, or None for a task that no expert was trained for.
        samples: Its prompts.
        num_skipped: Rows that were left out because they cannot be used.
    """

    name: str
    expert: str | None
    samples: tuple[Sample, ...]
    num_skipped: int = 0

    @property
    def is_scored(self) -> bool:
        """Whether answers can be good or bad; out-of-scope prompts only tell who abstains."""
        return any(sample.metric != "none" for sample in self.samples)


def load_tasks(
    folder: Path, split: str, expert_of: Mapping[str, str], *, limit: int | None = None, skip_bad: bool = False
) -> list[Task]:
    """All tasks of a folder, sorted by name.

    Args:
        folder: Where they are.
        split: Name of the file in each task's folder, without its ending.
        expert_of: Id of the expert by task name.
        limit: Take at most so many prompts of each task, drawn with a fixed seed.
        skip_bad: Leave out rows that cannot be used; otherwise they are an error.

    Raises:
        BadSamples: There is no such file, or it has bad rows.
    """
    files = {file.parent.name: file for file in sorted(folder.glob(f"*/{split}.jsonl"))}
    files |= {file.stem: file for file in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise BadSamples(f"{folder} has no tasks: expected {folder}/TASK/{split}.jsonl or {folder}/TASK.jsonl")
    tasks = []
    for name, file in sorted(files.items()):
        samples, bad = read_samples(file, name, skip_bad=skip_bad)
        if limit is not None and len(samples) > limit:
            samples = random.Random(f"{name}/{split}").sample(samples, limit)  # noqa: S311 (no secret is drawn)
        if samples:
            tasks.append(Task(name, expert_of.get(name), tuple(samples), len(bad)))
    return tasks
