"""The rows of one forward pass: which recipe each row has, and the layout of the experts side by side.

A batch is made once a step from vLLM's mapping of tokens to recipes, and all modules share it. Few rows (decoding) are
computed *densely*: the experts of the batch are side by side in one matrix, and a table of weights (rows by ranks)
picks each row's own. Many rows (prefill) are computed in *segments*, one recipe after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from server.vllm_plugin.kernels.packed_products import ALL_ROWS, Rows, can_pack
from server.vllm_plugin.plans import RecipePlan

MAX_DENSE_ROWS = 64
"""Maximum number of rows that are computed densely; in segments, no product is masked away."""

MIN_RUN = 16
"""Minimum number of contiguous rows for a segment; the remaining rows are gathered and scattered one by one."""

MAX_WASTE = 2
"""A layout with more than this many times the ranks in use is compacted, which pays after a few steps."""

MIN_PACKED = 128
"""Where matrices are packed, a layout with up to this many ranks is never compacted; columns cost less than packing."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows that share a recipe; several segments may share one, too.

    Attributes:
        rows: `ALL_ROWS`, a slice if the rows are contiguous, else indices.
        plan: The recipe.
    """

    rows: Rows
    plan: RecipePlan


@dataclass(slots=True)
class Layout:
    """The columns of each expert in the dense matrices.

    Attributes:
        min_ranks: A layout with up to this many ranks is never compacted.
        version: Changes when an expert moves or the capacity changes, but not when experts are appended.
        offsets: First column of each expert, in order of appearance.
        ranks: Number of columns of each expert: the largest rank among its modules.
        num_ranks: Columns in use.
        capacity: Columns of the matrices; those beyond `num_ranks` have no weight.
    """

    min_ranks: int = 0
    version: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    num_ranks: int = 0
    capacity: int = 0

    def cover(self, ranks: Mapping[str, int]) -> None:
        """Give columns to experts that have none.

        Args:
            ranks: The ranks of all experts of the step.
        """
        missing = [expert for expert in ranks if expert not in self.offsets]
        wanted = self.num_ranks + sum(ranks[expert] for expert in missing)
        if wanted > max(self.min_ranks, MAX_WASTE * sum(ranks.values())):
            self.clear()
            missing = list(ranks)
        for expert in missing:
            self.offsets[expert] = self.num_ranks
            self.ranks[expert] = ranks[expert]
            self.num_ranks += ranks[expert]
        if not self.num_ranks <= self.capacity <= 2 * self.num_ranks:
            spare = 0 if self.min_ranks else self.num_ranks // 4
            self.capacity = -(-(self.num_ranks + spare) // 16) * 16
            self.version += 1

    def clear(self) -> None:
        """Remove all experts."""
        self.version += 1
        self.offsets.clear()
        self.ranks.clear()
        self.num_ranks = 0


class Batch:
    """The current step's rows.

    Args:
        dtype: Type of the model's activations.
        device: Device of the activations.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self.layout = Layout(MIN_PACKED if can_pack(dtype, device) else 0)
        self.segments: list[Segment] = []
        self.gated: list[tuple[torch.Tensor, RecipePlan]] = []
        self.dense = False
        self._row_weights: dict[int, torch.Tensor] = {}

    def update(self, recipe_ids: Sequence[int], plans: Mapping[int, RecipePlan], ranks: Mapping[str, int]) -> None:
        """Begin a new step.

        Args:
            recipe_ids: vLLM's id of each row's recipe; 0 for a row without one.
            plans: Plans by recipe id.
            ranks: Largest rank of each resident expert.
        """
        groups = group_rows(recipe_ids)
        whole = slice(0, len(recipe_ids))
        self.segments = [Segment(rows if rows != whole else ALL_ROWS, plans[recipe]) for recipe, rows in groups]
        self.gated = []
        self.dense = len(recipe_ids) <= MAX_DENSE_ROWS and len({recipe for recipe, _ in groups}) > 1
        if self.dense:
            self._lay_out(len(recipe_ids), ranks)

    def _lay_out(self, num_rows: int, ranks: Mapping[str, int]) -> None:
        layout = self.layout
        layout.cover({expert: ranks[expert] for segment in self.segments for expert in segment.plan.experts})
        table = torch.zeros(num_rows, layout.capacity, dtype=self._dtype, device=self._device)
        for segment in self.segments:
            if segment.plan.gate is not None:
                rows = torch.arange(num_rows, device=self._device)[segment.rows]
                self.gated.append((rows, segment.plan))
                continue
            for expert, weight in zip(segment.plan.experts, segment.plan.weights, strict=True):
                start = layout.offsets[expert]
                table[segment.rows, start : start + layout.ranks[expert]] = weight
        self._row_weights = {1: table}

    def row_weights(self, num_slices: int) -> torch.Tensor:
        """A dense step's weights, the same for all slices; read-only, shape (num_rows, num_slices * capacity)."""
        weights = self._row_weights.get(num_slices)
        if weights is None:
            weights = self._row_weights[num_slices] = self._row_weights[1].repeat(1, num_slices)
        return weights

    def forget(self, expert: str) -> None:
        """Note that an expert lost its slot: other weights under its name must not use its columns."""
        if expert in self.layout.offsets:
            self.layout.clear()


def group_rows(recipe_ids: Sequence[int]) -> list[tuple[int, Rows]]:
    """Group rows by recipe, without id 0: a slice for each long run, and a slice or indices for an id's other rows."""
    ids = np.asarray(recipe_ids, dtype=np.int64)
    if not ids.size:
        return []
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
    ends = np.append(starts[1:], ids.size)
    runs: dict[int, list[tuple[int, int]]] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if ids[start] > 0:
            runs.setdefault(int(ids[start]), []).append((start, end))
    groups: list[tuple[int, Rows]] = []
    for recipe, spans in runs.items():
        groups += [(recipe, slice(start, end)) for start, end in spans if end - start >= MIN_RUN]
        short = [(start, end) for start, end in spans if end - start < MIN_RUN]
        if len(short) == 1:
            groups.append((recipe, slice(*short[0])))
        elif short:
            groups.append((recipe, torch.cat([torch.arange(start, end) for start, end in short])))
    return groups
