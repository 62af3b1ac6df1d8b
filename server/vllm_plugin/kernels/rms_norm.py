"""RMS norms on a CPU by vLLM's own kernels, which vLLM builds for CPUs too but chooses only on GPUs.

vLLM's default runs ten small torch operations a norm in eager mode: about a tenth of a decoding step, with and without
experts. A compiled model keeps the default, which the compiler fuses. ``--ir-op-priority`` overrides the choice.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm import ir
from vllm.config.compilation import CompilationMode
from vllm.config.kernel import IrOpPriorityConfig
from vllm.kernels import vllm_c
from vllm.platforms import current_platform

PROVIDER = "moergate_cpu"


def install_norms() -> None:
    """Make vLLM choose its own kernels if they exist and the model runs eagerly on a CPU."""
    if not current_platform.is_cpu() or not _has_kernels():
        return
    if PROVIDER not in ir.ops.rms_norm.impls:
        ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_can_norm)(vllm_c.rms_norm.impl_fn)
        add_norm = vllm_c.fused_add_rms_norm.impl_fn
        ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_can_add, inplace=True)(add_norm)
    type(current_platform).get_default_ir_op_priority = classmethod(_priority)


def _can_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()


def _can_add(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    same = x_residual.dtype == x.dtype and x_residual.is_contiguous()
    return same and _can_norm(x, weight, epsilon, variance_size)


def _has_kernels() -> bool:
    return hasattr(torch.ops._C, "rms_norm") and hasattr(torch.ops._C, "fused_add_rms_norm")


def _priority(_platform: type, vllm_config: Any) -> IrOpPriorityConfig:
    default = ["native"]
    if vllm_config.compilation_config.mode != CompilationMode.NONE:
        return IrOpPriorityConfig.with_default(default)
    ours = [PROVIDER, *default]
    return IrOpPriorityConfig.with_default(default, rms_norm=ours, fused_add_rms_norm=ours)
