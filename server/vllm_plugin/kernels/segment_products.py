"""Many rows, as in prefill: one product with A and one with B for each run of rows of one recipe.

The matrices of a recipe's experts are put one below the other once and kept for the recipes that were used last.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch

from server.vllm_plugin.kernels.batch import MAX_DENSE_ROWS, Segment
from server.vllm_plugin.kernels.gating import Gating
from server.vllm_plugin.kernels.module_weights import ModuleWeights
from server.vllm_plugin.kernels.packed_products import ALL_ROWS, Projection, Rows, SliceOutput, SliceOutputs
from server.vllm_plugin.plans import RecipePlan

MAX_BUNDLES = 4
"""Recipes of several experts whose matrices a module keeps."""

MAX_AT_ONCE = 1 << 16
"""Elements of a slice's output up to which a product has its own output, which is then added; beyond, torch adds in
place."""

ROW_STEP = 64
"""Where products are packed, long runs of rows are computed in multiples of this."""


@dataclass(frozen=True, slots=True)
class _Bundle:
    """A recipe's experts in all slices of a module; R is the sum of their ranks over all slices.

    Attributes:
        times_a: The product with A, shape (R, d_in); slice after slice, expert after expert.
        outputs: The products with B; includes constant weights where there is no gate.
        gating: None without a gate.
    """

    times_a: Projection
    outputs: SliceOutputs
    gating: Gating | None


class SegmentProducts:
    """Computes one segment after the other.

    Args:
        weights: The module's experts.
    """

    def __init__(self, weights: ModuleWeights) -> None:
        self._weights = weights
        self._bundles: OrderedDict[RecipePlan, _Bundle | None] = OrderedDict()
        self._newest: tuple[RecipePlan, _Bundle | None] | None = None

    def forget(self, expert: str) -> None:
        """Forget the matrices of all recipes that use an expert."""
        self._newest = None
        for plan in [plan for plan in self._bundles if expert in plan.experts]:
            del self._bundles[plan]

    def add(self, y: torch.Tensor, x: torch.Tensor, segment: Segment) -> None:
        """Add the experts' part of a segment's rows in place; shapes as in `ExpertLinear.add`."""
        bundle = self._bundle(segment.plan, x.dtype)
        if bundle is None:
            return
        rows = segment.rows
        window = _window(rows, x.shape[0]) if bundle.times_a.is_packable else rows
        x_rows = x if window is ALL_ROWS else x[window]
        inner = bundle.times_a(x_rows)
        if bundle.gating is not None:
            inner = bundle.gating.weigh(inner, x_rows)
        if window is not rows:
            _clear_padding(inner, rows, window)
        is_few = x_rows.shape[0] * self._weights.d_out <= MAX_AT_ONCE * len(self._weights.spans)
        bundle.outputs.add(y, window, inner, may_pack=is_few)

    def _bundle(self, plan: RecipePlan, dtype: torch.dtype) -> _Bundle | None:
        newest = self._newest
        if newest is not None and newest[0] is plan:  # hashing a plan takes longer
            return newest[1]
        try:
            bundle = self._bundles[plan]
            self._bundles.move_to_end(plan)
        except KeyError:
            bundle = self._bundles[plan] = self._make_bundle(plan, dtype)
            while len(self._bundles) > MAX_BUNDLES + len(self._weights):  # a single expert's bundle copies nothing
                self._bundles.popitem(last=False)
        self._newest = plan, bundle
        return bundle

    def _make_bundle(self, plan: RecipePlan, dtype: torch.dtype) -> _Bundle | None:
        """The plan's matrices; None if none of its experts adapts the module."""
        all_a: list[torch.Tensor] = []
        outputs: list[SliceOutput] = []
        start = 0
        for experts, span in zip(self._weights.by_slice(plan), self._weights.spans, strict=True):
            if not experts:
                continue
            all_a += [expert.weights.a for expert in experts]
            b = [e.weights.b if e.weight == 1.0 or plan.gate else e.weights.b * e.weight for e in experts]
            columns = slice(start, start + sum(map(len, b)))
            outputs.append(SliceOutput(columns, span, b[0] if len(b) == 1 else torch.cat(b)))
            start = columns.stop
        if not outputs:
            return None
        a = self._weights.all_a_of(plan.experts[0]) if len(plan.experts) == 1 else torch.cat(all_a)
        gating = self._weights.gating_of(plan, dtype)
        return _Bundle(Projection(a), SliceOutputs(outputs, self._weights.d_out), gating)


def _window(rows: Rows, num_rows: int) -> Rows:
    """A long run of rows, padded with its neighbours to a length that recurs.

    oneDNN makes a kernel for every new number of rows, which takes about a millisecond for each shape of matrix.
    """
    if rows is ALL_ROWS or not isinstance(rows, slice) or rows.stop - rows.start <= MAX_DENSE_ROWS:
        return rows
    length = min(num_rows, -(-(rows.stop - rows.start) // ROW_STEP) * ROW_STEP)
    start = min(rows.start, num_rows - length)
    return slice(start, start + length)


def _clear_padding(inner: torch.Tensor, rows: Rows, window: Rows) -> None:
    """Zero the padding rows so that they contribute nothing."""
    assert isinstance(rows, slice) and isinstance(window, slice)  # noqa: S101
    inner[: rows.start - window.start] = 0
    inner[rows.stop - window.start :] = 0
