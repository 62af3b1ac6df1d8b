"""The arithmetic as one opaque operation, for a model that is compiled or captured in CUDA graphs.

`ExpertLinear.add` reads the batch: Python data that changes in every step. A compiler that traced it would freeze one
batch into the graph. So a compiled model calls ``moergate::add_experts``, which looks up its module by name at run
time. vLLM also splits its CUDA graphs at this operation (`install_splitting`). In eager mode modules are called
directly.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from torch.library import Library
from vllm.config.compilation import CompilationConfig, CUDAGraphMode

from server.vllm_plugin.kernels.expert_linear import ExpertLinear

NAME = "moergate::add_experts"

_modules: dict[str, ExpertLinear] = {}
_library = Library("moergate", "DEF")
_library.define("add_experts(Tensor(a!) y, Tensor x, str module) -> ()")


def add_experts(y: torch.Tensor, x: torch.Tensor, module: str) -> None:
    """Call `ExpertLinear.add` of a registered module; this is the operation's implementation."""
    _modules[module].add(y, x)


def _add_nothing(y: torch.Tensor, x: torch.Tensor, module: str) -> None:
    """The operation as a compiler traces it: shapes do not change."""


_library.impl("add_experts", add_experts, "CompositeExplicitAutograd")
_library._register_fake("add_experts", _add_nothing)


def register_module(name: str, module: ExpertLinear) -> None:
    """Let the operation find a module by name; replaces an earlier module of the same name."""
    _modules[name] = module


_set_splitting_ops = CompilationConfig.set_splitting_ops_for_v1


@wraps(_set_splitting_ops)
def _set_splitting_ops_with_ours(self: CompilationConfig, *args: Any, **kwargs: Any) -> None:
    if self.cudagraph_mode is not None and self.cudagraph_mode.has_full_cudagraphs():
        self.cudagraph_mode = CUDAGraphMode.PIECEWISE  # a full graph would replay one batch's recipes forever
    _set_splitting_ops(self, *args, **kwargs)
    if self.splitting_ops:
        self.splitting_ops.append(NAME)


def install_splitting() -> None:
    """Make vLLM split compiled graphs, and so CUDA graphs, at the operation; turns full CUDA graphs off."""
    CompilationConfig.set_splitting_ops_for_v1 = _set_splitting_ops_with_ours
