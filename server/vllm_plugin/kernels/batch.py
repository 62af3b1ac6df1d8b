"""What one forward pass must do: which rows belong to which recipe, and how its experts are laid side by side.

Made once a step from vLLM's mapping of tokens to recipes and shared by all modules. Few rows (decoding) are computed
*densely*: the experts of the batch stand side by side in one matrix, and a table of weights (rows by ranks) picks
each row's own. Many rows (prefill) are computed in *segments*, one recipe after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from server.vllm_plugin.kernels.packed_products import ALL_ROWS, Rows, can_pack
from server.vllm_plugin.plans import Plan

MAX_DENSE_ROWS = 64
"""More rows than this are computed in segments, where no product is masked away."""
MIN_RUN = 16
"""Contiguous rows that are worth products of their own: what is left is gathered and scattered row by row."""
MAX_WASTE = 2
"""The layout is made anew when it has more than this many times the ranks in use; that pays after a few steps."""
MIN_PACKED = 128
"""Where matrices are packed, ranks up to which a layout is never made anew: more columns cost little, packing much."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows that share a recipe; several segments may have the same one.

    Attributes:
        rows: `ALL_ROWS`, a slice if they are contiguous, else indices.
        plan: What to do with them.
    """

    rows: Rows
    plan: Plan


@dataclass(slots=True)
class Layout:
    """Experts side by side: where each one's ranks are in the dense matrices.

    Attributes:
        version: Changes whenever a place or the capacity changes; experts that are appended keep it.
        offsets: First column of each expert, in order of appearance.
        ranks: Columns of each expert: the largest rank among its modules.
        num_ranks: Columns in use.
        capacity: Columns of the matrices; those beyond `num_ranks` have no weight.
        min_ranks: So many are never too many.
    """

    min_ranks: int = 0
    version: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    num_ranks: int = 0
    capacity: int = 0

    def cover(self, ranks: Mapping[str, int]) -> None:
        """Make sure that these experts, with these ranks, have a place."""
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
        """Forget all places."""
        self.version += 1
        self.offsets.clear()
        self.ranks.clear()
        self.num_ranks = 0


class Batch:
    """The current step's rows.

    Args:
        dtype: Of the model's activations.
        device: Where they are.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self.layout = Layout(MIN_PACKED if can_pack(dtype, device) else 0)
        self.segments: list[Segment] = []
        self.gated: list[tuple[torch.Tensor, Plan]] = []
        self.dense = False
        self._row_weights: dict[int, torch.Tensor] = {}

    def update(self, recipe_ids: Sequence[int], plans: Mapping[int, Plan], ranks: Mapping[str, int]) -> None:
        """Take a new step.

        Args:
            recipe_ids: vLLM's id of each row's recipe; 0 where a row has none.
            plans: Plans by recipe id.
            ranks: Largest rank of every resident expert.
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
        """A dense step's weights, alike for all slices, shape (num_rows, num_slices * capacity); not to be changed."""
        weights = self._row_weights.get(num_slices)
        if weights is None:
            weights = self._row_weights[num_slices] = self._row_weights[1].repeat(1, num_slices)
        return weights

    def forget(self, expert: str) -> None:
        """An expert is not resident any more: its place must not be used for another version of its weights."""
        if expert in self.layout.offsets:
            self.layout.clear()


def group_rows(recipe_ids: Sequence[int]) -> list[tuple[int, Rows]]:
    """Group rows by recipe, but for 0: a slice for each long run, and a slice or indices for what is left of an id."""
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
