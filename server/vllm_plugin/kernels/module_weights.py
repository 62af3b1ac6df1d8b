"""The weights of all experts that are in slots, for one linear module.

A module has one or more *slices* (q, k and v in one, gate and up in another): outputs side by side, computed from the
same input, each with its own A, B and gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from server.vllm_plugin.kernels.gating import Gating
from server.vllm_plugin.plans import FIXED, RecipePlan


@dataclass(frozen=True, slots=True)
class SliceWeights:
    """One expert in one slice.

    Attributes:
        a: A, shape (r, d_in).
        b: B transposed, shape (r, d_out); includes the adapter's scaling.
        vector: The expert's vector for gates, shape (d_in,), or None if it has none.
    """

    a: torch.Tensor
    b: torch.Tensor
    vector: torch.Tensor | None = None


class PlannedExpert(NamedTuple):
    """An expert of a plan that adapts a slice."""

    name: str
    weights: SliceWeights
    weight: float


class ModuleWeights:
    """The experts of one module.

    Args:
        d_in: Width of the input.
        output_slices: Width of each slice of the output.

    Attributes:
        d_in: Width of the input.
        d_out: Width of the whole output.
        spans: The part of the output that each slice has.
    """

    def __init__(self, d_in: int, output_slices: Sequence[int]) -> None:
        ends = torch.tensor(output_slices).cumsum(0).tolist()
        self.d_in = d_in
        self.d_out: int = ends[-1]
        self.spans = [slice(end - width, end) for end, width in zip(ends, output_slices, strict=True)]
        self._experts: dict[str, tuple[SliceWeights | None, ...]] = {}
        self._all_a: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        """Number of experts that adapt the module."""
        return len(self._experts)

    def put(self, expert: str, slices: Sequence[SliceWeights | None]) -> bool:
        """Store an expert's weights, None where it does not adapt a slice; returns whether it adapts any."""
        adapted = [weights.a for weights in slices if weights is not None]
        if not adapted:
            return False
        all_a = self._all_a[expert] = torch.cat(adapted)
        views = iter(all_a.split([len(a) for a in adapted]))  # the slices' A are views, so nothing is held twice
        self._experts[expert] = tuple(None if w is None else replace(w, a=next(views)) for w in slices)
        return True

    def drop(self, expert: str) -> bool:
        """Forget an expert's weights; returns whether there were any."""
        self._all_a.pop(expert, None)
        return self._experts.pop(expert, None) is not None

    def slices_of(self, expert: str) -> tuple[SliceWeights | None, ...]:
        """An expert's weights by slice; None where it does not adapt a slice."""
        return self._experts.get(expert) or (None,) * len(self.spans)

    def all_a_of(self, expert: str) -> torch.Tensor:
        """The A of all slices of an expert that adapts the module, one below the other."""
        return self._all_a[expert]

    def by_slice(self, plan: RecipePlan) -> list[list[PlannedExpert]]:
        """For each slice, the plan's experts that adapt it."""
        found: list[list[PlannedExpert]] = [[] for _ in self.spans]
        for name, weight in zip(plan.experts, plan.weights, strict=True):
            for experts, weights in zip(found, self.slices_of(name), strict=True):
                if weights is not None:
                    experts.append(PlannedExpert(name, weights, weight))
        return found

    def gating_of(self, plan: RecipePlan, dtype: torch.dtype) -> Gating | None:
        """The plan's gate in this module; None if it has no gate or no expert adapts the module."""
        by_slice = [experts for experts in self.by_slice(plan) if experts]
        if plan.gate is None or not by_slice:
            return None
        ranks = [[len(expert.weights.a) for expert in experts] for experts in by_slice]
        vectors = [_vector(expert, plan.gate.kind) for experts in by_slice for expert in experts]
        return Gating.of(plan.gate, ranks, torch.stack(vectors).to(dtype))


def _vector(expert: PlannedExpert, kind: str) -> torch.Tensor:
    """An expert's vector for a gate, shape (d_in,); for a fixed gate its weight, shape (1,)."""
    if kind == FIXED:
        return expert.weights.a.new_tensor([expert.weight])
    if expert.weights.vector is None:
        raise RuntimeError(f"{expert.name} has no vectors for a gate")
    return expert.weights.vector
