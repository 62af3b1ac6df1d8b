"""Few rows of several recipes, as in decoding: one product with A of all experts of the batch, and one with B.

The experts are side by side as in the batch's layout. A table of weights, rows by ranks, picks each row's own experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from server.vllm_plugin.kernels.batch import Batch, Layout
from server.vllm_plugin.kernels.gating import Gating
from server.vllm_plugin.kernels.module_weights import ModuleWeights
from server.vllm_plugin.kernels.packed_products import ALL_ROWS, Projection, SliceOutput, SliceOutputs
from server.vllm_plugin.plans import RecipePlan

MAX_GATES = 4
"""Gates that a module keeps, in addition to one for each of its experts."""


@dataclass(slots=True)
class _Gate:
    """A gate in this module.

    Attributes:
        gating: None if no expert of the gate adapts the module.
        columns: The columns of its experts in the current layout, slice after slice, expert after expert; shape (R,).
            None until they are needed.
    """

    gating: Gating | None
    columns: torch.Tensor | None = None


class DenseProducts:
    """Computes all rows of a step at once.

    Args:
        weights: The module's experts.
        batch: The current step.
    """

    def __init__(self, weights: ModuleWeights, batch: Batch) -> None:
        self._weights = weights
        self._batch = batch
        self._matrices = _Matrices(weights)
        self._gates: dict[RecipePlan, _Gate] = {}

    def forget(self, expert: str) -> None:
        """Forget the gates over an expert; the layout's version says when the matrices change."""
        for plan in [plan for plan in self._gates if expert in plan.experts]:
            del self._gates[plan]

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """Add the experts' part of all rows in place; shapes as in `ExpertLinear.add`."""
        batch, matrices = self._batch, self._matrices
        if matrices.follow(batch.layout, x):
            for gate in self._gates.values():
                gate.columns = None
        if matrices.outputs is None:
            return
        inner = matrices.times_a(x)
        weights = batch.row_weights(len(self._weights.spans))
        if batch.gated:
            weights = weights.clone()
            for rows, plan in batch.gated:
                self._weigh_gated(inner, weights, x[rows], rows, plan)
        inner.mul_(weights)
        matrices.outputs.add(y, ALL_ROWS, inner)

    def _weigh_gated(
        self, inner: torch.Tensor, weights: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, plan: RecipePlan
    ) -> None:
        """Fill the gated rows of `weights`; for ``ab`` also average their `inner`, which each expert then shares.

        Args:
            inner: A x of all rows, shape (num_rows, num_slices * capacity).
            weights: The table of weights, of the shape of `inner`.
            x: The gated rows' input, shape (num_gated, d_in).
            rows: The gated rows' indices, shape (num_gated,).
            plan: The gated rows' recipe.
        """
        gate = self._gates.get(plan) or self._make_gate(plan, x.dtype)
        gating = gate.gating
        if gating is None:
            return
        if gate.columns is None:
            gate.columns = self._columns_of(plan)
        place = rows[:, None], gate.columns
        gains = gating.columns(x)
        if gating.spec.aggregation == "ab":
            inner[place] = gating.averaged(inner[place] * gains)
        weights[place] = gains

    def _make_gate(self, plan: RecipePlan, dtype: torch.dtype) -> _Gate:
        gate = self._gates[plan] = _Gate(self._weights.gating_of(plan, dtype))
        while len(self._gates) > MAX_GATES + len(self._weights):
            del self._gates[next(iter(self._gates))]
        return gate

    def _columns_of(self, plan: RecipePlan) -> torch.Tensor:
        layout = self._batch.layout
        columns = [
            number * layout.capacity + layout.offsets[expert.name] + torch.arange(len(expert.weights.a))
            for number, experts in enumerate(self._weights.by_slice(plan))
            for expert in experts
        ]
        return torch.cat(columns).to(self._matrices.times_a.matrix.device)


class _Matrices:
    """A and B of all experts of a layout, and the products with them.

    Attributes:
        times_a: The product with A, shape (num_slices * capacity, d_in).
        outputs: The products with B; None if no expert adapts the module.
    """

    def __init__(self, weights: ModuleWeights) -> None:
        self._weights = weights
        self._version = -1
        self._num_placed = 0
        self._a = torch.empty(0)
        self._b: list[torch.Tensor] = []
        self._is_used: list[bool] = []
        self.times_a = Projection(self._a)
        self.outputs: SliceOutputs | None = None

    def follow(self, layout: Layout, x: torch.Tensor) -> bool:
        """Place the experts that were added to the layout, or all of them if it is new; returns whether it is new."""
        is_new = self._version != layout.version
        if is_new:
            self._version = layout.version
            self._begin(layout.capacity, x)
        if is_new or self._num_placed < len(layout.offsets):
            self._place(layout, list(layout.offsets)[self._num_placed :])
            self._num_placed = len(layout.offsets)
        return is_new

    def _begin(self, capacity: int, x: torch.Tensor) -> None:
        spans = self._weights.spans
        self._num_placed = 0
        self._is_used = [False] * len(spans)
        shape = (len(spans) * capacity, self._weights.d_in)
        if self._a.shape != shape:
            self._a = torch.zeros(shape, dtype=x.dtype, device=x.device)
            self._b = [torch.zeros(capacity, span.stop - span.start, dtype=x.dtype, device=x.device) for span in spans]

    def _place(self, layout: Layout, experts: Iterable[str]) -> None:
        by_slice = self._a.view(len(self._b), layout.capacity, -1)
        for expert in experts:
            place = slice(layout.offsets[expert], layout.offsets[expert] + layout.ranks[expert])
            for number, weights in enumerate(self._weights.slices_of(expert)):
                a, b = by_slice[number, place], self._b[number][place]
                rank = 0
                if weights is not None:
                    rank = len(weights.a)
                    a[:rank], b[:rank] = weights.a, weights.b
                    self._is_used[number] = True
                a[rank:] = 0
                b[rank:] = 0
        self.times_a = Projection(self._a)
        used = [
            SliceOutput(slice(number * layout.capacity, (number + 1) * layout.capacity), span, self._b[number])
            for number, span in enumerate(self._weights.spans)
            if self._is_used[number]
        ]
        self.outputs = SliceOutputs(used, self._weights.d_out) if used else None
