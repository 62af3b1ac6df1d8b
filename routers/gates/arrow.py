"""Arrow: an expert's score is the length of the token's component along the expert's prototype.

    score_e = |xᵀ v_e|,   v_e the unit top right singular vector of B_e A_e

x is neither centred nor normalised; the sign of v_e does not matter. Source: Ostapenko et al. 2024, "Towards Modular
LLMs by Building and Reusing a Library of LoRAs"; scores as in its code (mttl) and in PEFT's ``arrow.py``.
"""

from __future__ import annotations

import torch

from adapters_registry.disk.layout import PROTOTYPES_FOLDER


class Arrow:
    """Scores by |xᵀ v_e|; costs d_in multiplications for each expert and token."""

    artefact = PROTOTYPES_FOLDER

    def scores(self, x: torch.Tensor, dots: torch.Tensor) -> torch.Tensor:
        """Return |x Vᵀ|; shapes as in `GateMethod.scores`."""
        return dots.abs().float()
