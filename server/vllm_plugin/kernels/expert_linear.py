"""The arithmetic of one linear module: y += Σ_e g_e(x) · s_e · B_e A_e x, for every row its own experts and weights.

A module has one or more *slices* (q, k and v in one, gate and up in another): outputs side by side, computed from the
same input, each with its own A, B and gate. All slices' A are multiplied in one product. B holds the adapter's scaling
s_e already.

Gates are in `server.vllm_plugin.kernels.gating`; products that are made ready for a matrix in
`server.vllm_plugin.kernels.packed_products`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch

from server.vllm_plugin.kernels.batch import MAX_DENSE_ROWS, Batch
from server.vllm_plugin.kernels.gating import Gating
from server.vllm_plugin.kernels.packed_products import (
    ALL_ROWS,
    Output,
    Product,
    Rows,
    add_outputs,
    are_ready,
    outputs_of,
    product_with,
    times,
)
from server.vllm_plugin.plans import FIXED, GateSpec, Plan

MAX_BUNDLES = 4
"""Recipes of several experts that a module keeps ready for prefill."""

MAX_AT_ONCE = 1 << 16
"""Outputs of a slice up to which all slices are computed in one product and added; more are added where they belong."""

ROW_STEP = 64
"""Where products are packed, many rows are computed in multiples of this."""


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
    """A recipe's experts in one slice, one below the other; R is the sum of their ranks there.

    Attributes:
        columns: Where this slice's R columns are in the product with the bundle's A.
        b: Shape (R, width), constant weights multiplied in where there is no gate.
    """

    columns: slice
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Bundle:
    """A recipe's experts in all slices; a slice that no expert adapts has no part.

    Attributes:
        a: Shape (R, d_in), R the sum over slices.
        parts: By slice.
        gating: None without a gate.
        times_a: The product with A, where it is worth packing.
        outputs: Those with B, likewise.
    """

    a: torch.Tensor
    parts: tuple[_Part | None, ...]
    gating: Gating | None = None
    times_a: Product | None = None
    outputs: Sequence[Output] = ()


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
        self._d_out = ends[-1]
        self._experts: dict[str, tuple[SliceWeights | None, ...]] = {}
        self._packed: dict[str, torch.Tensor] = {}
        self._bundles: OrderedDict[Plan, _Bundle] = OrderedDict()
        self._newest: tuple[Plan, _Bundle] | None = None
        self._columns: dict[Plan, torch.Tensor] = {}
        self._dense_version = -1
        self._num_placed = 0
        self._a = torch.empty(0)
        self._b: list[torch.Tensor] = []
        self._times_a: Product | None = None
        self._outputs: Sequence[Output] = ()
        self._is_used = [False] * len(self._spans)

    def put(self, expert: str, slices: Sequence[SliceWeights | None]) -> None:
        """Make an expert's weights known; None where it does not adapt a slice."""
        there = [weights.a for weights in slices if weights is not None]
        if not there:
            return
        packed = self._packed[expert] = torch.cat(there)
        views = iter(packed.split([len(a) for a in there]))
        self._experts[expert] = tuple(None if w is None else replace(w, a=next(views)) for w in slices)
        self._forget_plans(expert)

    def drop(self, expert: str) -> None:
        """Forget an expert's weights; no effect if there are none."""
        if self._experts.pop(expert, None) is not None:
            del self._packed[expert]
            self._forget_plans(expert)

    def _forget_plans(self, expert: str) -> None:
        self._newest = None
        for plan in [plan for plan in self._bundles if expert in plan.experts]:
            del self._bundles[plan]
            self._columns.pop(plan, None)

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
        if not bundle.a.shape[0]:
            return
        around = _window(rows, x.shape[0]) if bundle.times_a is not None else rows
        x_rows = x if around is ALL_ROWS else x[around]
        inner = times(bundle.times_a, x_rows, bundle.a)
        if bundle.gating is not None:
            inner = bundle.gating.weigh(inner, x_rows)
        if around is not rows:
            _clear_outside(inner, rows, around)
        is_few = x_rows.shape[0] * self._d_out <= MAX_AT_ONCE * len(self._spans)
        if is_few and are_ready(bundle.outputs):
            add_outputs(y, around, inner, bundle.outputs)
            return
        for part, span in zip(bundle.parts, self._spans, strict=True):
            if part is None:
                continue
            ours = inner[:, part.columns]
            if isinstance(around, slice):
                y[around, span].addmm_(ours, part.b)
            else:
                y[around, span] += ours @ part.b

    def _bundle(self, plan: Plan, dtype: torch.dtype) -> _Bundle:
        newest = self._newest
        if newest is not None and newest[0] is plan:
            return newest[1]
        bundle = self._bundles.get(plan)
        if bundle is None:
            bundle = self._bundles[plan] = self._make_bundle(plan, dtype)
            while len(self._bundles) > MAX_BUNDLES + len(self._experts):  # a single expert's own bundle holds no copy
                oldest, _ = self._bundles.popitem(last=False)
                self._columns.pop(oldest, None)
        else:
            self._bundles.move_to_end(plan)
        self._newest = plan, bundle
        return bundle

    def _make_bundle(self, plan: Plan, dtype: torch.dtype) -> _Bundle:
        all_a: list[torch.Tensor] = []
        parts: list[_Part | None] = []
        chosen_by_slice = [self._chosen(plan, number) for number in range(len(self._spans))]
        start = 0
        for chosen in chosen_by_slice:
            if not chosen:
                parts.append(None)
                continue
            columns = slice(start, start + sum(len(expert.a) for _, expert, _ in chosen))
            start = columns.stop
            all_a += [expert.a for _, expert, _ in chosen]
            b = [expert.b if weight == 1.0 or plan.gate else expert.b * weight for _, expert, weight in chosen]
            parts.append(_Part(columns, b[0] if len(b) == 1 else torch.cat(b)))
        if not all_a:
            return _Bundle(torch.empty(0, self._d_in), tuple(parts))
        a = self._packed[plan.experts[0]] if len(plan.experts) == 1 else torch.cat(all_a)
        gating = None
        if plan.gate is not None:
            ranks = [[len(expert.a) for _, expert, _ in chosen] for chosen in chosen_by_slice if chosen]
            gating = Gating.of(plan.gate, ranks, self._vectors(plan.gate, chosen_by_slice).to(dtype))
        placed = [(part.columns, span, part.b) for part, span in zip(parts, self._spans, strict=True) if part]
        return _Bundle(a, tuple(parts), gating, product_with(a), outputs_of(placed, self._d_out))

    def _chosen(self, plan: Plan, number: int) -> list[tuple[str, SliceWeights, float]]:
        """The plan's experts that adapt a slice."""
        found = []
        for name, weight in zip(plan.experts, plan.weights, strict=True):
            slices = self._experts.get(name)
            if slices is not None and (expert := slices[number]) is not None:
                found.append((name, expert, weight))
        return found

    def _vectors(
        self, spec: GateSpec, chosen_by_slice: Sequence[Sequence[tuple[str, SliceWeights, float]]]
    ) -> torch.Tensor:
        """The experts' vectors, one slice after the other, shape (C, d_in); of a fixed gate their weights, (C, 1)."""
        found = []
        for name, expert, weight in chain.from_iterable(chosen_by_slice):
            if spec.kind == FIXED:
                found.append(expert.a.new_tensor([weight]))
            elif expert.vector is None:
                raise RuntimeError(f"{name} has no vectors for a gate")
            else:
                found.append(expert.vector)
        return torch.stack(found)

    # -- dense: all experts of the batch side by side -------------------------------------------------------------

    def _add_dense(self, y: torch.Tensor, x: torch.Tensor) -> None:
        self._follow_layout(x)
        if not any(self._is_used):
            return
        batch = self._batch
        inner = times(self._times_a, x, self._a)
        weights = batch.row_weights(len(self._spans))
        if batch.gated:
            weights = weights.clone()
            for rows, plan in batch.gated:
                self._weigh_gated(inner, weights, x[rows], rows, plan)
        inner.mul_(weights)
        if are_ready(self._outputs):
            add_outputs(y, ALL_ROWS, inner, self._outputs)
            return
        by_slice = inner.view(x.shape[0], len(self._spans), -1)
        for number, span in enumerate(self._spans):
            if self._is_used[number]:
                y[:, span].addmm_(by_slice[:, number], self._b[number])

    def _weigh_gated(
        self, inner: torch.Tensor, weights: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, plan: Plan
    ) -> None:
        """Fill the gated rows of `weights`; for ``ab`` also average their `inner`, which each expert then shares.

        Args:
            inner: A x of all rows, shape (num_rows, num_slices * capacity).
            weights: As `inner`.
            x: The gated rows' input, shape (num_gated, d_in).
            rows: Their numbers.
            plan: Their recipe.
        """
        gating = self._bundle(plan, x.dtype).gating
        if gating is None:
            return
        place = rows[:, None], self._columns_of(plan)
        gains = gating.columns(x)
        if gating.spec.aggregation == "ab":
            inner[place] = gating.averaged(inner[place] * gains)
        weights[place] = gains

    def _columns_of(self, plan: Plan) -> torch.Tensor:
        """Where the columns of a plan's bundle are in the dense matrices, shape (R,)."""
        columns = self._columns.get(plan)
        if columns is None:
            layout = self._batch.layout
            found = [
                number * layout.capacity + layout.offsets[name] + torch.arange(len(expert.a))
                for number in range(len(self._spans))
                for name, expert, _ in self._chosen(plan, number)
            ]
            columns = self._columns[plan] = torch.cat(found).to(self._a.device)
        return columns

    def _follow_layout(self, x: torch.Tensor) -> None:
        """Bring the matrices up to the batch's layout: append what was appended there, or begin anew."""
        layout = self._batch.layout
        is_new = self._dense_version != layout.version
        if is_new:
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
        if is_new or self._num_placed < len(layout.offsets):
            for name in list(layout.offsets)[self._num_placed :]:
                self._place(name, layout.offsets[name], layout.ranks[name])
            self._num_placed = len(layout.offsets)
            self._times_a = product_with(self._a)
            starts = range(0, len(self._a), layout.capacity)
            columns = [slice(start, start + layout.capacity) for start in starts]
            self._outputs = outputs_of(list(zip(columns, self._spans, self._b, strict=True)), self._d_out)

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


def _window(rows: Rows, num_rows: int) -> Rows:
    """Many contiguous rows with some around them, so that their number is one that comes often.

    For every new number of rows oneDNN makes a kernel, which takes about a millisecond for each shape of matrix.
    """
    if rows is ALL_ROWS or not isinstance(rows, slice) or rows.stop - rows.start <= MAX_DENSE_ROWS:
        return rows
    length = min(num_rows, -(-(rows.stop - rows.start) // ROW_STEP) * ROW_STEP)
    start = min(rows.start, num_rows - length)
    return slice(start, start + length)


def _clear_outside(inner: torch.Tensor, rows: Rows, around: Rows) -> None:
    """What stands for rows of others adds nothing."""
    assert isinstance(rows, slice) and isinstance(around, slice)  # noqa: S101
    inner[: rows.start - around.start] = 0
    inner[rows.stop - around.start :] = 0
