"""Uniform: every expert has the same weight for every token.

With the aggregation ``output`` this is a mix of equal weights. With ``ab`` it is LoraRetriever's *fusion*, (Σ B_e / n)
(Σ A_e / n) x (Zhao et al. 2024), which is not the mean of the experts. n is the number of experts that adapt the layer.
"""

from __future__ import annotations

import torch

from adapters_registry.disk.layout import PROTOTYPES_FOLDER


class Uniform:
    """Scores every expert alike. It ignores the vectors; it names Arrow's, which every expert has."""

    artefact = PROTOTYPES_FOLDER

    def scores(self, x: torch.Tensor, dots: torch.Tensor) -> torch.Tensor:
        """Return zeros; shapes as in `GateMethod.scores`."""
        return torch.zeros_like(dots, dtype=torch.float32)
