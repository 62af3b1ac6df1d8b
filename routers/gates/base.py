"""The interface of gates: scores of the experts from a module's input, then weights.

A gate works per token and per module. Its vectors, one for each expert and module, are made when an expert is
registered and are loaded with the expert. A new method is a new file with a class like `GateMethod` and an entry in
`GATES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from routers.gates.arrow import Arrow
from routers.gates.uniform import Uniform

MANY_TOKENS = 128
"""From this number of tokens on, a softmax in three steps is faster than torch's."""


class GateMethod(Protocol):
    """How a gate scores experts."""

    artefact: str
    """Folder of the store that has the experts' vectors."""

    def scores(self, x: torch.Tensor, dots: torch.Tensor) -> torch.Tensor:
        """Return how well each expert fits each token.

        Args:
            x: The module's input, shape (num_tokens, d_in).
            dots: Products of x with the module's vectors, shape (num_tokens, num_experts), of x's dtype.

        Returns:
            Shape (num_tokens, num_experts), float32.
        """
        ...


GATES: Mapping[str, GateMethod] = {"arrow": Arrow(), "uniform": Uniform()}


def top_k_weights(scores: torch.Tensor, k: int, temperature: float) -> torch.Tensor:
    """Return the softmax of scores / temperature over each token's k best experts; the others get 0.

    Args:
        scores: Shape (..., num_experts), float32.
        k: At least 1; a number above that of the experts stands for all.
        temperature: Above 0.

    Returns:
        Weights of the shape of `scores`; every row sums to 1.
    """
    num_experts = scores.shape[-1]
    if k < num_experts:
        best, indices = scores.topk(k, dim=-1)
        return torch.zeros_like(scores).scatter_(-1, indices, _softmax(best, temperature))
    return _softmax(scores, temperature)


def _softmax(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Softmax over the last dimension; torch's own takes three times as long for many tokens with few scores each."""
    if temperature != 1.0:
        scores = scores / temperature
    if len(scores) < MANY_TOKENS:
        return torch.softmax(scores, dim=-1)
    shares = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
    return shares.div_(shares.sum(dim=-1, keepdim=True))
