"""The arithmetic of one linear module: y += Σ_e g_e(x) · s_e · B_e A_e x, for every row its own experts and weights.

A module has one or more *slices* (q, k and v in one, gate and up in another): outputs side by side, computed from
the same input, each with its own A, B and gate. B holds the adapter's scaling s_e already.

Aggregation of a gate, with weights g_e of a token in this slice:

    output   Σ_e g_e · B_e (A_e x)                       PEFT's Arrow
    ab       (Σ_e g_e B_e) (Σ_e g_e A_e) x               mttl's Arrow: A and B averaged each by itself

For ``ab`` experts of unequal rank are lined up from their first rank on, the shorter ones filled with zeros. An
expert that does not adapt a slice is no choice there: a gate chooses among the others, so k may exceed their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from server.vllm_plugin.batch import Batch, Rows
from server.vllm_plugin.gates.base import GATES, top_k_weights
from server.vllm_plugin.plans import GateSpec, Plan


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


@dataclass(slots=True)
class _Dense:
    """A slice's experts side by side, in the order of the batch's layout; rows beyond are spare."""

    a: torch.Tensor
    b: torch.Tensor
    is_used: bool = False


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
        self._dense: list[_Dense] = []
        self._dense_version = -1
        self._dense_experts = 0
        self._vectors: dict[tuple[int, tuple[str, ...]], torch.Tensor] = {}

    def put(self, expert: str, slices: Sequence[SliceWeights | None]) -> None:
        """Make an expert's weights known; None where it does not adapt a slice."""
        self._experts[expert] = tuple(slices)
        self._vectors.clear()

    def drop(self, expert: str) -> None:
        """Forget an expert's weights; no effect if there are none."""
        if self._experts.pop(expert, None) is not None:
            self._vectors.clear()

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

    # -- segments -----------------------------------------------------------------------------------------------

    def _add_segment(self, y: torch.Tensor, x: torch.Tensor, rows: Rows, plan: Plan) -> None:
        x_rows = x[rows]
        for number, span in enumerate(self._spans):
            chosen = self._chosen(plan, number)
            if not chosen:
                continue
            y_rows = y[rows, span]  # a view if the rows are contiguous, else a copy that is written back
            if plan.gate is None:
                for _, expert, weight in chosen:
                    inner = linear(x_rows, expert.a)
                    if weight != 1.0:
                        inner *= weight
                    y_rows.addmm_(inner, expert.b)
            else:
                names = tuple(name for name, _, _ in chosen)
                gated = self._gate(x_rows, number, names, plan.gate)
                _add_gated(y_rows, x_rows, [expert for _, expert, _ in chosen], gated, plan.gate)
            if not isinstance(rows, slice):
                y[rows, span] = y_rows

    def _chosen(self, plan: Plan, number: int) -> list[tuple[str, SliceWeights, float]]:
        """The plan's experts that adapt a slice."""
        found = []
        for name, weight in zip(plan.experts, plan.weights, strict=True):
            slices = self._experts.get(name)
            if slices is not None and (expert := slices[number]) is not None:
                found.append((name, expert, weight))
        return found

    def _gate(self, x: torch.Tensor, number: int, names: tuple[str, ...], spec: GateSpec) -> torch.Tensor:
        """Weights of the named experts, shape (num_rows, num_experts), of x's dtype."""
        vectors = self._vectors.get((number, names))
        if vectors is None:
            listed = [self._vector(name, number) for name in names]
            vectors = self._vectors[number, names] = torch.stack(listed).to(x.dtype)
        scores = GATES[spec.kind].scores(x, vectors)
        return top_k_weights(scores, spec.k, spec.temperature).to(x.dtype)

    def _vector(self, name: str, number: int) -> torch.Tensor:
        weights = self._experts[name][number]
        assert weights is not None  # noqa: S101
        if weights.vector is None:
            raise RuntimeError(f"{name} has no vectors for a gate")
        return weights.vector

    # -- dense --------------------------------------------------------------------------------------------------

    def _add_dense(self, y: torch.Tensor, x: torch.Tensor) -> None:
        self._follow_layout(x)
        batch = self._batch
        num_ranks = batch.layout.num_ranks
        for number, (dense, span) in enumerate(zip(self._dense, self._spans, strict=True)):
            if not dense.is_used:
                continue
            inner = linear(x, dense.a[:num_ranks])
            weights = batch.row_weights
            if batch.gated:
                weights = weights.clone()
                for rows, plan, spec in batch.gated:
                    self._weight_gated(inner, weights, x, rows, plan, spec, number)
            inner *= weights
            y[:, span].addmm_(inner, dense.b[:num_ranks])

    def _weight_gated(
        self,
        inner: torch.Tensor,
        weights: torch.Tensor,
        x: torch.Tensor,
        rows: torch.Tensor,
        plan: Plan,
        spec: GateSpec,
        number: int,
    ) -> None:
        """Fill the gated rows of `weights`; for ``ab`` also average their `inner`, which each expert then shares."""
        names = tuple(name for name, _, _ in self._chosen(plan, number))
        if not names:
            return
        layout = self._batch.layout
        gated = self._gate(x[rows], number, names, spec)
        spans = [slice(layout.offsets[name], layout.offsets[name] + layout.ranks[name]) for name in names]
        if spec.aggregation == "ab":
            averaged = torch.zeros(len(rows), max(span.stop - span.start for span in spans), dtype=x.dtype)
            averaged = averaged.to(x.device)
            for column, span in enumerate(spans):
                averaged[:, : span.stop - span.start] += inner[rows, span] * gated[:, column : column + 1]
            for span in spans:
                inner[rows, span] = averaged[:, : span.stop - span.start]
        for column, span in enumerate(spans):
            weights[rows, span] = gated[:, column : column + 1]

    def _follow_layout(self, x: torch.Tensor) -> None:
        """Bring the matrices up to the batch's layout: append what was appended there, or begin anew."""
        layout = self._batch.layout
        if self._dense_version != layout.version:
            self._dense_version = layout.version
            self._dense_experts = 0
            for dense in self._dense:
                dense.is_used = False
        if self._dense_experts == len(layout.offsets):
            return
        if not self._dense or len(self._dense[0].a) < layout.num_ranks:
            self._grow(layout.num_ranks, x)
        for name in list(layout.offsets)[self._dense_experts :]:
            self._place(name, layout.offsets[name], layout.ranks[name])
        self._dense_experts = len(layout.offsets)

    def _grow(self, num_ranks: int, x: torch.Tensor) -> None:
        capacity = max(32, 1 << (num_ranks - 1).bit_length())
        grown = []
        for number, span in enumerate(self._spans):
            a = torch.zeros(capacity, self._d_in, dtype=x.dtype, device=x.device)
            b = torch.zeros(capacity, span.stop - span.start, dtype=x.dtype, device=x.device)
            dense = _Dense(a, b)
            if self._dense:
                old = self._dense[number]
                a[: len(old.a)], b[: len(old.b)], dense.is_used = old.a, old.b, old.is_used
            grown.append(dense)
        self._dense = grown

    def _place(self, name: str, start: int, num_ranks: int) -> None:
        slices = self._experts.get(name)
        for number, dense in enumerate(self._dense):
            rows = slice(start, start + num_ranks)
            dense.a[rows] = 0
            dense.b[rows] = 0
            weights = slices[number] if slices else None
            if weights is not None:
                dense.a[start : start + len(weights.a)] = weights.a
                dense.b[start : start + len(weights.b)] = weights.b
                dense.is_used = True


def _add_gated(
    y: torch.Tensor, x: torch.Tensor, experts: Sequence[SliceWeights], gated: torch.Tensor, spec: GateSpec
) -> None:
    """Add gated experts to y, in place; `gated` has shape (num_rows, num_experts)."""
    if spec.aggregation == "output":
        for column, expert in enumerate(experts):
            y.addmm_(linear(x, expert.a) * gated[:, column : column + 1], expert.b)
        return
    averaged = x.new_zeros(len(x), max(len(expert.a) for expert in experts))
    for column, expert in enumerate(experts):
        averaged[:, : len(expert.a)] += linear(x, expert.a) * gated[:, column : column + 1]
    for column, expert in enumerate(experts):
        y.addmm_(averaged[:, : len(expert.b)] * gated[:, column : column + 1], expert.b)
