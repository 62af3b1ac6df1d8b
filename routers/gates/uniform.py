"""Uniform: every expert has the same weight, whatever the token.

With the aggregation ``output`` this is a mix of equal weights; with ``ab`` it is LoraRetriever's *fusion*, (Σ B_e / n)
(Σ A_e / n) x (Zhao et al. 2024), which is not the mean of the experts. n counts the experts that adapt the layer.
"""

from __future__ import annotations

import torch

from adapters_registry.disk.layout import PROTOTYPES_FOLDER


class Uniform:
    """See the module's docstring. It reads no vectors; those of Arrow are there for every expert."""

    artefact = PROTOTYPES_FOLDER

    def scores(self, x: torch.Tensor, dots: torch.Tensor) -> torch.Tensor:
        """Zeros; see `routers.gates.base.Gate`."""
        return torch.zeros_like(dots, dtype=torch.float32)
