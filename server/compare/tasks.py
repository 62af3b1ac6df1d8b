"""Labelled prompts from a folder, ``DIR/<task>/<split>.jsonl`` or ``DIR/<task>.jsonl``, or from one file.

A row belongs to the task that it names itself (``task`` or ``expert``), else to the one of its folder or file.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from routers.base import Sample
from routers.errors import BadSamples
from routers.library.samples import read_samples


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
        folder: Where they are; or one file.
        split: Name of the file in each task's folder, without its ending.
        expert_of: Id of the expert by task name.
        limit: Take at most so many prompts of each task, drawn with a fixed seed.
        skip_bad: Leave out rows that cannot be used; otherwise they are an error.

    Raises:
        BadSamples: There is no such file, or it has bad rows.
    """
    files = [folder] if folder.is_file() else sorted([*folder.glob(f"*/{split}.jsonl"), *folder.glob("*.jsonl")])
    if not files:
        raise BadSamples(f"{folder} has no tasks: expected {folder}/TASK/{split}.jsonl or {folder}/TASK.jsonl")
    found: dict[str, list[Sample]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    for file in files:
        own = file.parent.name if file.parent != folder and file != folder else file.stem
        samples, bad = read_samples(file, own, skip_bad=skip_bad)
        skipped[own] += len(bad)
        for sample in samples:
            found[sample.task].append(sample)
    tasks = []
    for name, samples in sorted(found.items()):
        if limit is not None and len(samples) > limit:
            samples = random.Random(f"{name}/{split}").sample(samples, limit)  # noqa: S311 (no secret is drawn)
        tasks.append(Task(name, expert_of.get(name), tuple(samples), skipped.pop(name, 0)))
    return tasks
