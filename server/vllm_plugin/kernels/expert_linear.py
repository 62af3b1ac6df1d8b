"""The arithmetic of one linear module: y += Σ_e g_e(x) · s_e · B_e A_e x, with each row's own experts and weights.

The A of all slices of a module are multiplied in one product. Few rows are computed by `dense_products`, many by
`segment_products`; the batch says which.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from server.vllm_plugin.kernels.batch import Batch
from server.vllm_plugin.kernels.dense_products import DenseProducts
from server.vllm_plugin.kernels.module_weights import ModuleWeights, SliceWeights
from server.vllm_plugin.kernels.segment_products import SegmentProducts


class ExpertLinear:
    """The experts' part of one module.

    Args:
        batch: The current step, shared by all modules.
        d_in: Width of the input.
        output_slices: Width of each slice of the output.
    """

    def __init__(self, batch: Batch, d_in: int, output_slices: Sequence[int]) -> None:
        self._batch = batch
        self._weights = ModuleWeights(d_in, output_slices)
        self._segments = SegmentProducts(self._weights)
        self._dense = DenseProducts(self._weights, batch)

    def put(self, expert: str, slices: Sequence[SliceWeights | None]) -> None:
        """Store an expert's weights; None where it does not adapt a slice."""
        if self._weights.put(expert, slices):
            self._forget(expert)

    def drop(self, expert: str) -> None:
        """Forget an expert's weights; no effect if there are none."""
        if self._weights.drop(expert):
            self._forget(expert)

    def _forget(self, expert: str) -> None:
        self._segments.forget(expert)
        self._dense.forget(expert)

    @property
    def has_rows(self) -> bool:
        """Whether any row of this step has a recipe."""
        return bool(self._batch.segments)

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """Add the experts' part in place.

        Args:
            y: The output, shape (num_rows, sum of the slices).
            x: The input, shape (num_rows, d_in).
        """
        if self._batch.dense:
            self._dense.add(y, x)
            return
        for segment in self._batch.segments:
            self._segments.add(y, x, segment)
