"""A gate inside one linear module: weighs the product with A by the module's input.

Aggregation, with weights g_e of a token in a slice:

    output   Σ_e g_e · B_e (A_e x)                       PEFT's Arrow
    ab       (Σ_e g_e B_e) (Σ_e g_e A_e) x               mttl's Arrow: A and B averaged separately

For ``ab`` experts of unequal rank are aligned at their first rank, and shorter ones are padded with zeros. A gate
chooses only among the experts that adapt the slice, so k may exceed their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from routers.gates.base import GATES, top_k_weights
from server.vllm_plugin.kernels.packed_products import Projection
from server.vllm_plugin.plans import FIXED, GateSpec


@dataclass(frozen=True, slots=True)
class Gating:
    """The experts that a gate chooses among in a module, for all slices; C is the sum of each slice's experts.

    Attributes:
        spec: The gate.
        vectors: The product with the experts' vectors, shape (C, d_in), slice after slice; for a fixed gate the
            matrix holds the weights, shape (C, 1).
        num_choices: Number of experts of each slice that has any.
        rank: The common rank of all experts if all slices have equally many experts: R is then slices by experts by
            ranks; else 0.
        choice: The expert among C to which a column of the product with A belongs, shape (R,).
        position: The rank of its expert to which a column belongs, numbered across slices, shape (R,); ``ab``
            averages columns of equal number.
        num_positions: One more than the largest position.
    """

    spec: GateSpec
    vectors: Projection
    num_choices: tuple[int, ...]
    rank: int
    choice: torch.Tensor
    position: torch.Tensor
    num_positions: int

    @classmethod
    def of(cls, spec: GateSpec, ranks: Sequence[Sequence[int]], vectors: torch.Tensor) -> Self:
        """Make a gate.

        Args:
            spec: The gate.
            ranks: The experts' ranks by slice.
            vectors: The experts' vectors, in the model's dtype; for a fixed gate the weights.
        """
        choice, position = [], []
        num_choices = num_positions = 0
        for in_slice in ranks:
            choice.append(num_choices + torch.repeat_interleave(torch.arange(len(in_slice)), torch.tensor(in_slice)))
            position.append(num_positions + torch.cat([torch.arange(rank) for rank in in_slice]))
            num_choices += len(in_slice)
            num_positions += max(in_slice)
        is_even = len(set(map(len, ranks))) == 1 and len({rank for in_slice in ranks for rank in in_slice}) == 1
        return cls(
            spec=spec,
            vectors=Projection(vectors),
            num_choices=tuple(map(len, ranks)),
            rank=ranks[0][0] if is_even else 0,
            choice=torch.cat(choice).to(vectors.device),
            position=torch.cat(position).to(vectors.device),
            num_positions=num_positions,
        )

    def gains(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of every choice for every row, shape (num_rows, C), of x's dtype."""
        if self.spec.kind == FIXED:
            return self.vectors.matrix.T.expand(len(x), -1)
        scores = GATES[self.spec.kind].scores(x, self.vectors(x))
        k, temperature = self.spec.k, self.spec.temperature
        if len(set(self.num_choices)) == 1:
            by_slice = scores.view(len(x), len(self.num_choices), -1)
            return top_k_weights(by_slice, k, temperature).flatten(1).to(x.dtype)
        slices = scores.split(self.num_choices, dim=1)
        return torch.cat([top_k_weights(each, k, temperature) for each in slices], dim=1).to(x.dtype)

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """The weight of every column of the product with A, shape (num_rows, R)."""
        gains = self.gains(x)
        return gains.repeat_interleave(self.rank, dim=1) if self.rank else gains[:, self.choice]

    def weigh(self, inner: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Weigh the product with A, shape (num_rows, R); for ``ab`` also average it over the experts."""
        weights = self.columns(x)
        weighted = inner * weights
        return self.averaged(weighted) * weights if self.spec.aggregation == "ab" else weighted

    def averaged(self, weighted: torch.Tensor) -> torch.Tensor:
        """Sum each rank's columns over the experts and give every expert the sum; shape (num_rows, R)."""
        if self.rank:
            by_expert = weighted.view(len(weighted), len(self.num_choices), -1, self.rank)
            return by_expert.sum(dim=2, keepdim=True).expand_as(by_expert).flatten(1)
        summed = weighted.new_zeros(len(weighted), self.num_positions).index_add_(1, self.position, weighted)
        return summed[:, self.position]
