"""Products with a matrix that stays for many steps, made ready for it where that pays.

torch looks its bfloat16 kernel up anew in every call, which takes 17 µs on a CPU however few the rows are; vLLM's own
oneDNN product, the one of the base's linear layers, is bound to a matrix that it has packed, and takes 4. Packing takes
0.15 ms, so a matrix must be used a few times first. Elsewhere, and in float32, torch is as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch.nn.functional import linear
from vllm import _custom_ops as vllm_ops

Rows: TypeAlias = slice | torch.Tensor

ALL_ROWS = slice(None)
"""Nothing has to be cut out, which takes as long as a small product does."""

PACK_AFTER = 8
"""Uses before a matrix is packed: by then about as much has been lost as packing costs."""

MAX_PACKED = 1 << 19
"""Elements of a matrix that is packed; larger ones gain little, and the packed copy takes memory."""

MAX_ZEROS = 200_000
"""Between the B of several slices in one matrix: reading more takes longer than a product for each slice."""

KERNELS = 32
"""Numbers of rows that a packed matrix keeps a kernel for, as vLLM's linear layers do."""


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of this kind are worth packing, and can be on this machine."""
    return dtype is torch.bfloat16 and device.type == "cpu" and _works()


@cache
def _works() -> bool:
    if not vllm_ops._supports_onednn:
        return False
    try:
        ones = torch.ones(16, 16, dtype=torch.bfloat16)
        return bool((Product(lambda: ones)(ones) == 16).all())
    except RuntimeError:  # a processor that oneDNN has no such kernel for
        return False


class Product:
    """x ↦ x M for rows x, shape (n, K), and one matrix M, shape (K, N).

    Args:
        matrix: Gives M when it is packed.
    """

    def __init__(self, matrix: Callable[[], torch.Tensor]) -> None:
        self._matrix = matrix
        self._num_uses = 0
        self._packed: Any = None

    def is_ready(self) -> bool:
        """Whether M has been used so often that it is worth packing; asking counts as a use."""
        if self._packed is not None:
            return True
        self._num_uses += 1
        return self._num_uses > PACK_AFTER

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product, shape (n, N); packs M if it is not yet."""
        packed = self._packed
        if packed is None:
            packed = self._packed = vllm_ops.create_onednn_mm(self._matrix(), KERNELS)
        y = x.new_empty((x.shape[0], packed.n))  # contiguous: the product writes where it would be if it were
        torch.ops._C.onednn_mm(y, x, None, packed.handler_tensor)
        return y


@dataclass(frozen=True, slots=True)
class Output:
    """A product with B, of one slice of a module's output or of all of them at once.

    Attributes:
        columns: Of the product with A that it takes.
        span: Of the output that it adds to.
        times: The product.
        is_all: Whether these are all columns, and the whole output.
    """

    columns: slice
    span: slice
    times: Product
    is_all: bool = False


def product_with(a: torch.Tensor) -> Product | None:
    """x ↦ A x for A, shape (R, d_in), if that is worth packing."""
    return Product(lambda: a.T) if can_pack(a.dtype, a.device) and a.numel() <= MAX_PACKED else None


def times(product: Product | None, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """A x for rows x, shape (num_rows, R); the product is A's, if it has one."""
    return product(x) if product is not None and product.is_ready() else linear(x, a)


def outputs_of(placed: Sequence[tuple[slice, slice, torch.Tensor]], width: int) -> Sequence[Output]:
    """Products with the B of each slice, in one matrix if few zeros are between them; none if they are not packed.

    Args:
        placed: Of each slice the columns that its B takes, the part of the output that it adds to, and B itself.
        width: Of the whole output.
    """
    first = placed[0][2]
    if not can_pack(first.dtype, first.device) or max(b.numel() for _, _, b in placed) > MAX_PACKED:
        return ()
    num_ranks, d_out = placed[-1][0].stop, placed[-1][1].stop

    def all_of_them() -> torch.Tensor:
        matrix = first.new_zeros(num_ranks, d_out)
        for columns, span, b in placed:
            matrix[columns, span] = b
        return matrix

    if num_ranks * d_out - sum(b.numel() for _, _, b in placed) <= MAX_ZEROS:
        return (Output(slice(0, num_ranks), slice(0, d_out), Product(all_of_them), is_all=d_out == width),)
    return tuple(Output(columns, span, Product(partial(_same, b))) for columns, span, b in placed)


def are_ready(outputs: Sequence[Output]) -> bool:
    """Whether there are any, and they have been asked for often enough; asking counts."""
    return bool(outputs) and outputs[0].times.is_ready()


def add_outputs(y: torch.Tensor, rows: Rows, inner: torch.Tensor, outputs: Sequence[Output]) -> None:
    """Add products with B, of `inner`, shape (num_rows, R), to some rows of y."""
    for output in outputs:
        added = output.times(inner if output.is_all else inner[:, output.columns])
        if rows is ALL_ROWS and output.is_all:
            y.add_(added)
        elif isinstance(rows, slice):
            y[rows, output.span].add_(added)
        else:
            y[:, output.span].index_add_(0, rows, added)


def _same(matrix: torch.Tensor) -> torch.Tensor:
    return matrix
