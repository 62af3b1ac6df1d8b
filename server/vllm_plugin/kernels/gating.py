"""A gate inside one linear module: from the module's input to what the product with A becomes.

Aggregation, with weights g_e of a token in a slice:

    output   Σ_e g_e · B_e (A_e x)                       PEFT's Arrow
    ab       (Σ_e g_e B_e) (Σ_e g_e A_e) x               mttl's Arrow: A and B averaged each by itself

For ``ab`` experts of unequal rank are lined up from their first rank on, the shorter ones filled with zeros. An expert
that does not adapt a slice is no choice there: a gate chooses among the others, so k may exceed their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from routers.gates.base import GATES, top_k_weights
from server.vllm_plugin.kernels.packed_products import Product, product_with, times
from server.vllm_plugin.plans import FIXED, GateSpec


@dataclass(frozen=True, slots=True)
class Gating:
    """What a gate chooses among in a module, for all slices at once; C is the sum of the experts that each slice has.

    Attributes:
        spec: The gate.
        vectors: Shape (C, d_in), one slice after the other; of a fixed gate the weights, (C, 1).
        num_choices: Experts of each slice that has any.
        times_vectors: The product with them, where it is worth packing.
        rank: That of all experts, if all slices have as many: R is then slices by experts by ranks; else 0.
        choice: Shape (R,): which of the C a column of the product with A belongs to.
        position: Shape (R,): which rank of its expert a column is, counted on from slice to slice, so that equal
            numbers are averaged by ``ab``.
        num_positions: One more than the largest.
    """

    spec: GateSpec
    vectors: torch.Tensor
    num_choices: tuple[int, ...]
    times_vectors: Product | None
    rank: int
    choice: torch.Tensor
    position: torch.Tensor
    num_positions: int

    @classmethod
    def of(cls, spec: GateSpec, ranks: Sequence[Sequence[int]], vectors: torch.Tensor) -> Self:
        """A gate over experts of these ranks, by slice, and with these vectors, of the model's dtype."""
        choice, position = [], []
        num_choices = num_positions = 0
        for here in ranks:
            choice.append(num_choices + torch.repeat_interleave(torch.arange(len(here)), torch.tensor(here)))
            position.append(num_positions + torch.cat([torch.arange(rank) for rank in here]))
            num_choices += len(here)
            num_positions += max(here)
        is_even = len({len(here) for here in ranks}) == 1 and len({rank for here in ranks for rank in here}) == 1
        return cls(
            spec=spec,
            vectors=vectors,
            times_vectors=product_with(vectors) if spec.kind != FIXED else None,
            num_choices=tuple(len(here) for here in ranks),
            rank=ranks[0][0] if is_even else 0,
            choice=torch.cat(choice).to(vectors.device),
            position=torch.cat(position).to(vectors.device),
            num_positions=num_positions,
        )

    def gains(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of every choice for every row, shape (num_rows, C), of x's dtype."""
        if self.spec.kind == FIXED:
            return self.vectors.T.expand(len(x), -1)
        scores = GATES[self.spec.kind].scores(x, times(self.times_vectors, x, self.vectors))
        k, temperature = self.spec.k, self.spec.temperature
        if len(set(self.num_choices)) == 1:
            each = scores.view(len(x), len(self.num_choices), -1)
            return top_k_weights(each, k, temperature).flatten(1).to(x.dtype)
        slices = scores.split(self.num_choices, dim=1)
        return torch.cat([top_k_weights(each, k, temperature) for each in slices], dim=1).to(x.dtype)

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of every column of the product with A, shape (num_rows, R)."""
        gains = self.gains(x)
        return gains.repeat_interleave(self.rank, dim=1) if self.rank else gains[:, self.choice]

    def weigh(self, inner: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The product with A, shape (num_rows, R), with what the gate makes of it."""
        weights = self.columns(x)
        weighted = inner * weights
        return self.averaged(weighted) * weights if self.spec.aggregation == "ab" else weighted

    def averaged(self, weighted: torch.Tensor) -> torch.Tensor:
        """Sum over experts of each rank's columns, given to every expert; shape (num_rows, R) as `weighted`."""
        if self.rank:
            by_expert = weighted.view(len(weighted), len(self.num_choices), -1, self.rank)
            return by_expert.sum(dim=2, keepdim=True).expand_as(by_expert).flatten(1)
        summed = weighted.new_zeros(len(weighted), self.num_positions).index_add_(1, self.position, weighted)
        return summed[:, self.position]
