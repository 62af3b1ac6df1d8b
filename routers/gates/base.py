"""The seam between a gate's recipe and the arithmetic: scores from a module's input, then weights.

A gate works per token and per module. Its vectors, one for each expert and module, are made when an expert is
registered and loaded with it. A further method is a further file with a class of this form and a line in `GATES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from routers.gates.arrow import Arrow
from routers.gates.uniform import Uniform

MANY_TOKENS = 128


class Gate(Protocol):
    """A scoring rule."""

    artefact: str
    """Name of the folder in the store that has the experts' vectors."""

    def scores(self, x: torch.Tensor, dots: torch.Tensor) -> torch.Tensor:
        """How well each expert fits each token.

        Args:
            x: The module's input, shape (num_tokens, d_in).
            dots: Its products with the experts' vectors of this module, shape (num_tokens, num_experts), of x's dtype.

        Returns:
            Shape (num_tokens, num_experts), float32.
        """
        ...


GATES: Mapping[str, Gate] = {"arrow": Arrow(), "uniform": Uniform()}


def top_k_weights(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """Softmax of scores / temperature over each token's k best experts; the others get 0.

    Args:
        scores: Shape (..., num_experts), float32.
        k: At least 1; beyond the number of experts it means all of them.
        temperature: Above 0.

    Returns:
        Of the same shape; every row sums to 1.
    """
    num_experts = scores.shape[-1]
    if k < num_experts:
        best, indices = scores.topk(k, dim=-1)
        return torch.zeros_like(scores).scatter_(-1, indices, _softmax(best, temperature))
    return _softmax(scores, temperature)


def _softmax(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Over the last dimension; torch's own takes three times as long for few numbers of each of many tokens."""
    if temperature != 1.0:
        scores = scores / temperature
    if len(scores) < MANY_TOKENS:
        return torch.softmax(scores, dim=-1)
    shares = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
    return shares.div_(shares.sum(dim=-1, keepdim=True))
