"""The table of scores: how well the base and the experts answered labelled prompts. Some routers learn from it.

    <home>/scores/table.jsonl    one prompt a line, with the figures of each scored model

``moergate score`` reports to the table. Reports are merged by prompt and model; newer figures replace older ones. The
file is replaced as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_registry.disk.safe_files import replace_file
from routers.base import BASE, Matrix, Sample, ScoreTable
from server.errors import BadRequest

MAX_ROWS = 200_000
MAX_REPORTED_MODELS = 2_000

Stamp = tuple[int, int, int]
NOT_THERE: Stamp = (0, 0, 0)


class Figures(BaseModel):
    """Figures of one model on one prompt; unknown figures are absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: Annotated[float, Field(ge=0, le=1)] | None = None
    loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    prompt_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    entropy: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class ScoreRow(BaseModel):
    """A labelled prompt with the figures of models, by ``base`` or an expert's id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Annotated[str, Field(max_length=200)] = ""
    prompt: Annotated[str, Field(min_length=1, max_length=400_000)]
    answer: Annotated[str, Field(max_length=100_000)]
    metric: Annotated[str, Field(max_length=100)] = "exact_match"
    models: Annotated[dict[str, Figures], Field(max_length=MAX_REPORTED_MODELS)]

    @property
    def sample(self) -> Sample:
        """The labelled prompt without its figures."""
        return Sample(self.prompt, self.answer, self.task, self.metric)


class ScoreReport(BaseModel):
    """The body of ``POST /admin/scores``."""

    rows: list[ScoreRow]


class ScoreStore:
    """The table of scores on disk and in memory. Several gateways may report to one table."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "table.jsonl"
        self._rows: dict[Sample, dict[str, Figures]] = {}
        self._read: Stamp = NOT_THERE

    @property
    def stamp(self) -> Stamp:
        """A value that changes whenever the table's file does."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return NOT_THERE
        return found.st_mtime_ns, found.st_size, found.st_ino

    def report(self, rows: Iterable[ScoreRow]) -> None:
        """Merge rows into the table; blocking. Raises BadRequest if it is full, OSError if it cannot be written."""
        with self._alone():
            merged = {sample: dict(models) for sample, models in self._all().items()}
            for row in rows:
                merged[row.sample] = merged.get(row.sample, {}) | row.models
            if len(merged) > MAX_ROWS:
                raise BadRequest(f"The table would have {len(merged)} prompts; at most {MAX_ROWS} fit.")
            self._write(merged)

    def clear(self) -> None:
        """Remove all rows; blocking."""
        with self._alone():
            self._write({})

    def summary(self) -> dict[str, Any]:
        """Return the number of prompts, the tasks, and the mean score of each model."""
        rows = self._all()
        models: dict[str, list[float]] = {}
        for figures in rows.values():
            for model, found in figures.items():
                models.setdefault(model, []).append(math.nan if found.score is None else found.score)
        tasks = sorted({sample.task for sample in rows})
        listed = [
            {"model": model, "num_prompts": len(scores), "mean_score": _mean(scores)}
            for model, scores in sorted(models.items())
        ]
        return {"num_prompts": len(rows), "tasks": tasks, "models": listed}

    def samples(self) -> tuple[Sample, ...]:
        """Return the labelled prompts, in a fixed order; blocking."""
        return tuple(sorted(self._all(), key=lambda s: (s.task, s.prompt, s.answer, s.metric)))

    def table(self, experts: Collection[str], samples: Sequence[Sample], embeddings: Matrix) -> ScoreTable | None:
        """Return the figures of the base and of these experts; None if the table has none."""
        rows = self._all()
        known = {model for figures in rows.values() for model in figures}
        models = (BASE, *sorted(known & set(experts)))
        if not rows or not known:
            return None
        blocks = {name: np.full((len(samples), len(models)), np.nan) for name in Figures.model_fields}
        for row, sample in enumerate(samples):
            figures = rows.get(sample, {})
            for column, model in enumerate(models):
                found = figures.get(model)
                if found is not None:
                    for name, block in blocks.items():
                        value = getattr(found, name)
                        block[row, column] = math.nan if value is None else value
        return ScoreTable(
            models,
            tuple(samples),
            embeddings,
            blocks["score"],
            blocks["loss"],
            blocks["prompt_loss"],
            blocks["entropy"],
        )

    def _alone(self) -> FileLock:
        """Lock the file against changes by other threads and processes."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self._file.with_suffix(".lock"), thread_local=False)

    def _all(self) -> dict[Sample, dict[str, Figures]]:
        if (stamp := self.stamp) != self._read:
            try:
                lines = self._file.read_bytes().splitlines()
            except FileNotFoundError:
                lines = []
            rows = [ScoreRow.model_validate_json(line) for line in lines]
            self._rows = {row.sample: dict(row.models) for row in rows}
            self._read = stamp
        return self._rows

    def _write(self, rows: dict[Sample, dict[str, Figures]]) -> None:
        content = b"".join(
            ScoreRow(task=sample.task, prompt=sample.prompt, answer=sample.answer, metric=sample.metric, models=models)
            .model_dump_json(exclude_none=True)
            .encode()
            + b"\n"
            for sample, models in rows.items()
        )
        self._file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._file, content)
        self._rows, self._read = rows, self.stamp


def parse_report(raw: bytes) -> list[ScoreRow]:
    """Read rows from a body ``{"rows": [...]}``; raises BadRequest that names the row."""
    try:
        rows = orjson.loads(raw)["rows"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise BadRequest("Send {'rows': [{'prompt': …, 'answer': …, 'models': {'base': {'score': 1}}}]}.") from None
    if not isinstance(rows, list):
        raise BadRequest("'rows' must be an array.", param="rows")
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(ScoreRow.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the row"
            raise BadRequest(f"rows.{number}: {where}: {first['msg']}", param=f"rows.{number}") from None
    return found


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return round(sum(known) / len(known), 4) if known else None
