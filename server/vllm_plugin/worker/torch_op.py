"""The arithmetic as one opaque operation, for a model that is compiled or captured in CUDA graphs.

`ExpertLinear.add` reads the batch, which is Python data and new in every step. A compiler must not look inside, or it
would bake one batch in; so there it is ``moergate::add_experts``, which names its module and is looked up when it runs.
vLLM also cuts its CUDA graphs at it (`install_splitting`). Run eagerly, modules are called directly.
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
    """`ExpertLinear.add` of a module that was made known; the operation's implementation."""
    _modules[module].add(y, x)


def _add_nothing(y: torch.Tensor, x: torch.Tensor, module: str) -> None:
    """What a compiler runs in its place: shapes stay as they are."""


_library.impl("add_experts", add_experts, "CompositeExplicitAutograd")
_library._register_fake("add_experts", _add_nothing)


def make_known(name: str, module: ExpertLinear) -> None:
    """Let the operation find a module by its name; a later one of the same name takes its place."""
    _modules[name] = module


_set_splitting_ops = CompilationConfig.set_splitting_ops_for_v1


@wraps(_set_splitting_ops)
def _set_splitting_ops_with_ours(self: CompilationConfig, *args: Any, **kwargs: Any) -> None:
    if self.cudagraph_mode is not None and self.cudagraph_mode.has_full_cudagraphs():
        self.cudagraph_mode = CUDAGraphMode.PIECEWISE  # a full graph would replay one batch's recipes for ever
    _set_splitting_ops(self, *args, **kwargs)
    if self.splitting_ops:
        self.splitting_ops.append(NAME)


def install_splitting() -> None:
    """Make vLLM cut compiled graphs, and with them CUDA graphs, at our operation; full CUDA graphs are off."""
    CompilationConfig.set_splitting_ops_for_v1 = _set_splitting_ops_with_ours
