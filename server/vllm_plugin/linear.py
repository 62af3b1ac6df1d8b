"""The arithmetic of one linear module: y += Σ_e g_e(x) · s_e · B_e A_e x, for every row its own experts and weights.

A module has one or more *slices* (q, k and v in one, gate and up in another): outputs side by side, computed from the
same input, each with its own A, B and gate. All slices' A are multiplied in one product. B holds the adapter's scaling
s_e already.

Aggregation of a gate, with weights g_e of a token in a slice:

    output   Σ_e g_e · B_e (A_e x)                       PEFT's Arrow
    ab       (Σ_e g_e B_e) (Σ_e g_e A_e) x               mttl's Arrow: A and B averaged each by itself

For ``ab`` experts of unequal rank are lined up from their first rank on, the shorter ones filled with zeros. An expert
that does not adapt a slice is no choice there: a gate chooses among the others, so k may exceed their number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import linear

from server.vllm_plugin.batch import Batch, Rows
from server.vllm_plugin.gates.base import GATES, top_k_weights
from server.vllm_plugin.plans import FIXED, GateSpec, Plan

MAX_BUNDLES = 4
"""Recipes of several experts that a module keeps ready for prefill."""


@dataclass(frozen=True, slots=True)
class SliceWeights:
    """One expert in one slice.

    Attributes:
        a: Shape (r, d_in).
        b: B transposed, shape (r, d_out), with the scaling.
        vector: The expert's vector for gates, shape (d_in,), or None if it has none.
    """

    a: torch.Tensor
    b: torch.Tensor
    vector: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """A recipe's experts in one slice, one below the other; R is the sum of their ranks.

    Attributes:
        columns: Where this slice's R columns are in the product with the bundle's A.
        b: Shape (R, d_out), constant weights multiplied in where there is no gate.
        owner: Shape (R,): which of the slice's experts a column belongs to.
        position: Shape (R,): which rank of that expert it is.
        max_rank: Largest rank.
        vectors: Shape (num_experts, d_in), or None without a gate; of a fixed one the weights, (num_experts, 1).
    """

    columns: slice
    b: torch.Tensor
    owner: torch.Tensor
    position: torch.Tensor
    max_rank: int
    vectors: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Bundle:
    """A recipe's experts in all slices; a slice that no expert adapts has no part."""

    a: torch.Tensor
    parts: tuple[_Part | None, ...]


class ExpertLinear:
    """The experts' part of one module.

    Args:
        batch: The current step, shared by all modules.
        d_in: Width of the input.
        output_slices: Width of each slice of the output.
    """

    def __init__(self, batch: Batch, d_in: int, output_slices: Sequence[int]) -> None:
        self._batch = batch
        self._d_in = d_in
        ends = torch.tensor(output_slices).cumsum(0).tolist()
        self._spans = [slice(end - width, end) for end, width in zip(ends, output_slices, strict=True)]
        self._experts: dict[str, tuple[SliceWeights | None, ...]] = {}
        self._packed: dict[str, torch.Tensor] = {}
        self._bundles: OrderedDict[Plan, _Bundle] = OrderedDict()
        self._columns: dict[tuple[Plan, int], torch.Tensor] = {}
        self._dense_version = -1
        self._num_placed = 0
        self._a = torch.empty(0)
        self._b: list[torch.Tensor] = []
        self._is_used = [False] * len(self._spans)

    def put(self, expert: str, slices: Sequence[SliceWeights | None]) -> None:
        """Make an expert's weights known; None where it does not adapt a slice."""
        there = [weights.a for weights in slices if weights is not None]
        if not there:
            return
        packed = self._packed[expert] = torch.cat(there)
        views = iter(packed.split([len(a) for a in there]))
        self._experts[expert] = tuple(None if w is None else replace(w, a=next(views)) for w in slices)
        self._forget_plans()

    def drop(self, expert: str) -> None:
        """Forget an expert's weights; no effect if there are none."""
        if self._experts.pop(expert, None) is not None:
            del self._packed[expert]
            self._forget_plans()

    def _forget_plans(self) -> None:
        self._bundles.clear()
        self._columns.clear()

    @property
    def has_rows(self) -> bool:
        """Whether any row of this step has a recipe."""
        return bool(self._batch.segments)

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """Add the experts' part in place.

        Args:
            y: Shape (num_rows, sum of the slices).
            x: Shape (num_rows, d_in).
        """
        if self._batch.dense:
            self._add_dense(y, x)
            return
        for segment in self._batch.segments:
            self._add_segment(y, x, segment.rows, segment.plan)

    # -- segments: one recipe after the other ---------------------------------------------------------------------

    def _add_segment(self, y: torch.Tensor, x: torch.Tensor, rows: Rows, plan: Plan) -> None:
        bundle = self._bundle(plan, x.dtype)
        if not len(bundle.a):
            return
        x_rows = x[rows]
        inner = linear(x_rows, bundle.a)
        for part, span in zip(bundle.parts, self._spans, strict=True):
            if part is None:
                continue
            ours = inner[:, part.columns]
            if plan.gate is not None and part.vectors is not None:
                gains = _gains(x_rows, part.vectors, plan.gate)[:, part.owner]
                ours = ours * gains
                if plan.gate.aggregation == "ab":
                    ours = _averaged(ours, part) * gains
            if isinstance(rows, slice):
                y[rows, span].addmm_(ours, part.b)
            else:
                y[rows, span] += ours @ part.b

    def _bundle(self, plan: Plan, dtype: torch.dtype) -> _Bundle:
        bundle = self._bundles.get(plan)
        if bundle is None:
            bundle = self._bundles[plan] = self._make_bundle(plan, dtype)
            while len(self._bundles) > MAX_BUNDLES + len(self._experts):  # a single expert's own bundle holds no copy
                self._bundles.popitem(last=False)
                self._columns.clear()
        else:
            self._bundles.move_to_end(plan)
        return bundle

    def _make_bundle(self, plan: Plan, dtype: torch.dtype) -> _Bundle:
        all_a: list[torch.Tensor] = []
        parts: list[_Part | None] = []
        start = 0
        for number in range(len(self._spans)):
            chosen = self._chosen(plan, number)
            if not chosen:
                parts.append(None)
                continue
            ranks = [len(expert.a) for _, expert, _ in chosen]
            columns = slice(start, start + sum(ranks))
            start = columns.stop
            all_a += [expert.a for _, expert, _ in chosen]
            b = [expert.b if weight == 1.0 or plan.gate else expert.b * weight for _, expert, weight in chosen]
            device = chosen[0][1].a.device
            owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
            position = torch.cat([torch.arange(rank) for rank in ranks])
            vectors = None
            if plan.gate is not None and plan.gate.kind == FIXED:
                vectors = torch.tensor([[weight] for _, _, weight in chosen], dtype=dtype, device=device)
            elif plan.gate is not None:
                vectors = self._vectors([name for name, _, _ in chosen], number).to(dtype)
            stacked = b[0] if len(b) == 1 else torch.cat(b)
            parts.append(_Part(columns, stacked, owner.to(device), position.to(device), max(ranks), vectors))
        if not all_a:
            return _Bundle(torch.empty(0, self._d_in), tuple(parts))
        a = self._packed[plan.experts[0]] if len(plan.experts) == 1 else torch.cat(all_a)
        return _Bundle(a, tuple(parts))

    def _chosen(self, plan: Plan, number: int) -> list[tuple[str, SliceWeights, float]]:
        """The plan's experts that adapt a slice."""
        found = []
        for name, weight in zip(plan.experts, plan.weights, strict=True):
            slices = self._experts.get(name)
            if slices is not None and (expert := slices[number]) is not None:
                found.append((name, expert, weight))
        return found

    def _vectors(self, names: Sequence[str], number: int) -> torch.Tensor:
        found = []
        for name in names:
            weights = self._experts[name][number]
            if weights is None or weights.vector is None:
                raise RuntimeError(f"{name} has no vectors for a gate")
            found.append(weights.vector)
        return torch.stack(found)

    # -- dense: all experts of the batch side by side -------------------------------------------------------------

    def _add_dense(self, y: torch.Tensor, x: torch.Tensor) -> None:
        self._follow_layout(x)
        if not any(self._is_used):
            return
        batch = self._batch
        inner = linear(x, self._a).view(len(x), len(self._spans), -1)
        weights = batch.row_weights[:, None]
        if batch.gated:
            weights = weights.repeat(1, len(self._spans), 1)
            for rows, plan, spec in batch.gated:
                self._weight_gated(inner, weights, x[rows], rows, plan, spec)
        inner *= weights
        for number, span in enumerate(self._spans):
            if self._is_used[number]:
                y[:, span].addmm_(inner[:, number], self._b[number])

    def _weight_gated(
        self,
        inner: torch.Tensor,
        weights: torch.Tensor,
        x: torch.Tensor,
        rows: torch.Tensor,
        plan: Plan,
        spec: GateSpec,
    ) -> None:
        """Fill the gated rows of `weights`; for ``ab`` also average their `inner`, which each expert then shares.

        Args:
            inner: A x of all rows, shape (num_rows, num_slices, capacity).
            weights: As `inner`.
            x: The gated rows' input, shape (num_gated, d_in).
            rows: Their numbers.
            plan, spec: Their recipe.
        """
        bundle = self._bundle(plan, x.dtype)
        for number, part in enumerate(bundle.parts):
            if part is None or part.vectors is None:
                continue
            columns = self._columns_of(plan, number, part)
            gains = _gains(x, part.vectors, spec)[:, part.owner]
            if spec.aggregation == "ab":
                ours = inner[rows, number][:, columns] * gains
                inner[rows[:, None], number, columns] = _averaged(ours, part)
            weights[rows[:, None], number, columns] = gains

    def _columns_of(self, plan: Plan, number: int, part: _Part) -> torch.Tensor:
        """Where the ranks of a plan's experts in a slice are in the dense matrices, shape (R,)."""
        columns = self._columns.get((plan, number))
        if columns is None:
            names = [name for name, _, _ in self._chosen(plan, number)]
            starts = torch.tensor([self._batch.layout.offsets[name] for name in names], device=part.owner.device)
            columns = self._columns[plan, number] = starts[part.owner] + part.position
        return columns

    def _follow_layout(self, x: torch.Tensor) -> None:
        """Bring the matrices up to the batch's layout: append what was appended there, or begin anew."""
        layout = self._batch.layout
        if self._dense_version != layout.version:
            self._dense_version = layout.version
            self._columns.clear()
            self._num_placed = 0
            self._is_used = [False] * len(self._spans)
            shape = (len(self._spans) * layout.capacity, self._d_in)
            if self._a.shape != shape:
                self._a = torch.zeros(shape, dtype=x.dtype, device=x.device)
                self._b = [
                    torch.zeros(layout.capacity, span.stop - span.start, dtype=x.dtype, device=x.device)
                    for span in self._spans
                ]
        if self._num_placed < len(layout.offsets):
            for name in list(layout.offsets)[self._num_placed :]:
                self._place(name, layout.offsets[name], layout.ranks[name])
            self._num_placed = len(layout.offsets)

    def _place(self, name: str, start: int, num_ranks: int) -> None:
        slices = self._experts.get(name)
        for number, b in enumerate(self._b):
            a = self._a.view(len(self._spans), -1, self._d_in)[number, start : start + num_ranks]
            b = b[start : start + num_ranks]
            weights = slices[number] if slices else None
            rank = 0
            if weights is not None:
                rank = len(weights.a)
                a[:rank], b[:rank] = weights.a, weights.b
                self._is_used[number] = True
            a[rank:] = 0
            b[rank:] = 0


def _averaged(weighted: torch.Tensor, part: _Part) -> torch.Tensor:
    """Sum over experts of each rank's columns, given to every expert; shape (num_rows, R) as `weighted`."""
    summed = weighted.new_zeros(len(weighted), part.max_rank).index_add_(1, part.position, weighted)
    return summed[:, part.position]


def _gains(x: torch.Tensor, vectors: torch.Tensor, spec: GateSpec) -> torch.Tensor:
    """A gate's weights, shape (num_rows, num_experts), of x's dtype."""
    if spec.kind == FIXED:
        return vectors.T.expand(len(x), -1)
    scores = GATES[spec.kind].scores(x, vectors)
    return top_k_weights(scores, spec.k, spec.temperature).to(x.dtype)
