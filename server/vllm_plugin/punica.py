"""LoRA arithmetic on the CPU: rows grouped by expert, one product a group.

    y[rows of e] += s · (x[rows of e] A_eᵀ) B_eᵀ        for every expert e in the batch, every slice of the module

vLLM's own CPU kernels copy A and B once for every token, and index the slots with -1 for rows without an expert, which
gives such rows the last slot's expert. Here rows without an expert are in no group. The embedding and lm_head take no
adapters (the registry refuses them), so their wrappers do nothing. On other devices vLLM's kernels stay.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

Rows: TypeAlias = slice | torch.Tensor


def group_rows(slots: torch.Tensor) -> list[tuple[int, Rows]]:
    """Group the rows of a batch by slot.

    Args:
        slots: Shape (num_rows,), int64; -1 where a row has no expert.

    Returns:
        Each slot in use with its rows: a slice if they are contiguous, else indices.
    """
    groups: list[tuple[int, Rows]] = []
    for slot in torch.unique(slots).tolist():
        if slot < 0:
            continue
        indices = torch.nonzero(slots == slot).flatten()
        first, last = int(indices[0]), int(indices[-1])
        contiguous = last - first + 1 == indices.numel()
        groups.append((slot, slice(first, last + 1) if contiguous else indices))
    return groups


class GroupedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's CPU wrapper with grouped products in place of the per-token ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups: list[tuple[int, Rows]] = []

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Called once a step, before the forward pass: group the rows of the batch."""
        super().update_metadata(*args, **kwargs)
        self._groups = group_rows(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_unused: Any,
    ) -> None:
        """Add the experts' part to a linear module's output, in place.

        Args:
            y: Shape (..., sum(output_slices)).
            x: Shape (..., d_in).
            lora_a_stacked: For each slice, shape (num_slots, 1, max_rank, d_in).
            lora_b_stacked: For each slice, shape (num_slots, 1, d_out, max_rank); holds the adapter's own scaling.
            scale: Factor on top.
            output_slices: Each slice's d_out.
        """
        if not self._groups:
            return
        y = y.view(-1, y.shape[-1])
        x = x.view(-1, x.shape[-1])
        for slot, rows in self._groups:
            x_rows = x[rows]
            start = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                inner = x_rows @ a[slot, 0].T
                if scale != 1.0:
                    inner *= scale
                y[rows, start : start + width] += inner @ b[slot, 0].T
                start += width

    def add_lora_embedding(self, *_args: Any, **_kwargs: Any) -> None:
        """Adapters on the embedding are refused at registration."""

    def add_lora_logits(self, *_args: Any, **_kwargs: Any) -> None:
        """Adapters on lm_head are refused at registration."""


def install_on_cpu() -> None:
    """Make vLLM use `GroupedPunicaWrapper`, if it runs on a CPU."""
    if not current_platform.is_cpu():
        return
    qualified = f"{GroupedPunicaWrapper.__module__}.{GroupedPunicaWrapper.__qualname__}"
    type(current_platform).get_punica_wrapper = classmethod(lambda _cls: qualified)
