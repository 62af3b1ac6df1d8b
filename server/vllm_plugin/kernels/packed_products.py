"""Products with a matrix that stays the same for many steps; the matrix is packed once that pays.

torch looks up its bfloat16 kernel in every call, which takes 17 µs on a CPU even for a single row. vLLM's oneDNN
product, which the base's linear layers use, is bound to a matrix that it has packed, and takes 4 µs. Packing takes
0.15 ms, so a matrix must be used a few times first. Elsewhere, and in float32, torch is as fast and computes the
product.
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
"""All rows: none are cut out of the tensor, which would take as long as a small product."""

PACK_AFTER = 8
"""Uses before a matrix is packed; by then torch's lookups have cost about as much as packing."""

MAX_PACKED = 1 << 19
"""Maximum number of elements of a packed matrix; larger ones gain little, and the packed copy takes memory."""

MAX_ZEROS = 200_000
"""Maximum number of zeros in a matrix with the B of all slices; reading more takes longer than separate products."""

MAX_KERNELS = 32
"""Row counts for which a packed matrix keeps a kernel, as in vLLM's linear layers."""


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether packing is possible on this machine and pays for matrices of this kind."""
    return dtype is torch.bfloat16 and device.type == "cpu" and _works()


@cache
def _works() -> bool:
    if not vllm_ops._supports_onednn:
        return False
    try:
        ones = torch.ones(16, 16, dtype=torch.bfloat16)
        return bool((PackedMatrix(lambda: ones)(ones) == 16).all())
    except RuntimeError:  # oneDNN has no such kernel for this processor
        return False


class PackedMatrix:
    """x ↦ x M for rows x, shape (n, K), and one matrix M, shape (K, N).

    Args:
        matrix: Returns M; called once, when M is packed.
    """

    def __init__(self, matrix: Callable[[], torch.Tensor]) -> None:
        self._matrix = matrix
        self._num_uses = 0
        self._packed: Any = None

    def is_ready(self) -> bool:
        """Whether M is used often enough to be packed; each call counts as a use."""
        if self._packed is not None:
            return True
        self._num_uses += 1
        return self._num_uses > PACK_AFTER

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product, shape (n, N); packs M at the first call."""
        packed = self._packed
        if packed is None:
            packed = self._packed = vllm_ops.create_onednn_mm(self._matrix(), MAX_KERNELS)
        y = x.new_empty((x.shape[0], packed.n))  # must be contiguous: the kernel ignores strides
        torch.ops._C.onednn_mm(y, x, None, packed.handler_tensor)
        return y


class Projection:
    """x ↦ A x for rows x, shape (n, d_in), and one matrix A, shape (R, d_in).

    Attributes:
        matrix: A.
        is_packable: Whether A is packed after a few uses; torch computes the product until then, or always.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix
        self.is_packable = can_pack(matrix.dtype, matrix.device) and matrix.numel() <= MAX_PACKED
        self._packed = PackedMatrix(lambda: matrix.T) if self.is_packable else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product, shape (n, R)."""
        packed = self._packed
        return packed(x) if packed is not None and packed.is_ready() else linear(x, self.matrix)


@dataclass(frozen=True, slots=True)
class SliceOutput:
    """What one slice adds to a module's output.

    Attributes:
        columns: The columns of the product with A that the slice takes.
        span: The part of the output to which it adds.
        b: B transposed, shape (number of columns, width of the span).
    """

    columns: slice
    span: slice
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class _PackedOutput:
    """A packed product of one slice, or of all slices at once.

    Attributes:
        columns: As in `SliceOutput`.
        span: As in `SliceOutput`.
        times_b: The product with B.
        is_all: Whether it takes all columns and covers the whole output.
    """

    columns: slice
    span: slice
    times_b: PackedMatrix
    is_all: bool = False


class SliceOutputs:
    """y += (A x) B for all slices of a module; packed after a few uses where that pays, else computed by torch.

    Args:
        slices: What each slice adds; at least one.
        d_out: Width of the whole output.
    """

    def __init__(self, slices: Sequence[SliceOutput], d_out: int) -> None:
        self._slices = slices
        self._packed = _pack(slices, d_out)

    def add(self, y: torch.Tensor, rows: Rows, inner: torch.Tensor, *, may_pack: bool = True) -> None:
        """Add to some rows of the output, in place.

        Args:
            y: The output, shape (num_rows, d_out).
            rows: The rows to which `inner` belongs.
            inner: The product with A, shape (number of those rows, R).
            may_pack: False leaves the product to torch.
        """
        packed = self._packed
        if may_pack and packed and packed[0].times_b.is_ready():
            for output in packed:
                added = output.times_b(inner if output.is_all else inner[:, output.columns])
                if rows is ALL_ROWS and output.is_all:
                    y.add_(added)
                elif isinstance(rows, slice):
                    y[rows, output.span].add_(added)
                else:
                    y[:, output.span].index_add_(0, rows, added)
            return
        for each in self._slices:
            if isinstance(rows, slice):
                y[rows, each.span].addmm_(inner[:, each.columns], each.b)
            else:
                y[rows, each.span] += inner[:, each.columns] @ each.b


def _pack(slices: Sequence[SliceOutput], d_out: int) -> Sequence[_PackedOutput]:
    """One packed product for all slices if few zeros are between their B, else one a slice; none if B is not packed."""
    first, last = slices[0].b, slices[-1]
    if not can_pack(first.dtype, first.device) or max(each.b.numel() for each in slices) > MAX_PACKED:
        return ()
    num_ranks, width = last.columns.stop, last.span.stop

    def all_slices() -> torch.Tensor:
        matrix = first.new_zeros(num_ranks, width)
        for each in slices:
            matrix[each.columns, each.span] = each.b
        return matrix

    if num_ranks * width - sum(each.b.numel() for each in slices) <= MAX_ZEROS:
        return (_PackedOutput(slice(0, num_ranks), slice(0, width), PackedMatrix(all_slices), is_all=width == d_out),)
    return tuple(_PackedOutput(each.columns, each.span, PackedMatrix(partial(_same, each.b))) for each in slices)


def _same(matrix: torch.Tensor) -> torch.Tensor:
    return matrix
