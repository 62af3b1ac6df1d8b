"""Adapters between vLLM's layers and the plugin's arithmetic: they take the place of vLLM's LoRA kernels.

On a CPU the plugin computes everything: vLLM's own kernels copy A and B once for every token, and index the slots with
-1 for rows without an expert, which gives such rows the last slot's expert. On other devices requests for one expert
keep vLLM's kernels, and the plugin computes only mixes and gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from server.vllm_plugin.kernels.batch import Batch
from server.vllm_plugin.kernels.expert_linear import ExpertLinear
from server.vllm_plugin.plans import RecipePlan
from server.vllm_plugin.worker.torch_op import register_module


class ResidentExperts(Protocol):
    """The experts in slots and the recipes that use them; `ExpertModelManager` implements it."""

    batch: Batch
    plans: Mapping[int, RecipePlan]
    ranks: Mapping[str, int]
    names: Mapping[int, str]


class BatchWrapper:
    """Reads vLLM's mapping of tokens to LoRAs once a step.

    Args:
        resident: The experts in slots.
        theirs: vLLM's own wrapper for the device, which computes requests for one expert; None on a CPU.
    """

    def __init__(self, resident: ResidentExperts, theirs: Any | None) -> None:
        self._resident = resident
        self.theirs = theirs

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        """Begin a step; vLLM calls this before the forward pass."""
        resident = self._resident
        if self.theirs is None:
            resident.batch.update(mapping.index_mapping, resident.plans, resident.ranks)
            return
        ours, single = split_recipes(mapping.index_mapping, resident.plans, resident.names)
        _, single_prompts = split_recipes(mapping.prompt_mapping, resident.plans, resident.names)
        resident.batch.update(ours, resident.plans, resident.ranks)
        theirs = replace(mapping, index_mapping=single, prompt_mapping=single_prompts)
        self.theirs.update_metadata(theirs, lora_index_to_id, max_loras, vocab_size, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if self.theirs is None:
            raise AttributeError(name)
        return getattr(self.theirs, name)


class ModuleWrapper:
    """Adds the experts' part to one linear module.

    Args:
        name: The name by which a compiled model finds the module.
        linear: The module's experts.
        theirs: vLLM's own wrapper; None on a CPU.
    """

    def __init__(self, name: str, linear: ExpertLinear, theirs: Any | None) -> None:
        self._name = name
        self._linear = linear
        self.theirs = theirs
        register_module(name, linear)

    def add_lora_linear(self, y: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        """Add the experts' part in place; vLLM calls this after the base's own product.

        Args:
            y: The output, shape (..., sum of the slices).
            x: The input, shape (..., d_in).
        """
        added = self.theirs.add_lora_linear(y, x, *args, **kwargs) if self.theirs is not None else None
        self.add(y, x)
        return added

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """Add the part that the plugin computes in place; shapes as in `add_lora_linear`."""
        is_compiling = torch.compiler.is_compiling()
        if is_compiling or self._linear.has_rows:
            if y.ndim != 2:
                y, x = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
            if is_compiling:
                torch.ops.moergate.add_experts(y, x, self._name)
            else:
                self._linear.add(y, x)

    def __getattr__(self, name: str) -> Any:
        if self.theirs is None:
            raise AttributeError(name)
        return getattr(self.theirs, name)


def forward_over(base: torch.nn.Module, wrapper: ModuleWrapper) -> Callable[[torch.Tensor], Any]:
    """Make the forward pass of a linear layer that is whole in this process: the base's, then the experts' part.

    vLLM's layers with LoRA do the same, but look up a dozen attributes of modules, which torch searches in Python. In
    decoding that costs several microseconds a layer, with or without an expert.

    Args:
        base: The layer without LoRA.
        wrapper: The layer's wrapper, on a device where vLLM's kernels compute nothing.

    Returns:
        A function from the input, shape (..., d_in), to what `base` returns.
    """
    forward_of_base = base.forward

    def forward(input_: torch.Tensor) -> Any:
        returned = forward_of_base(input_)
        wrapper.add(returned[0] if isinstance(returned, tuple) else returned, input_)
        return returned

    return forward


def split_recipes(
    recipe_ids: Sequence[int], plans: Mapping[int, RecipePlan], names: Mapping[int, str]
) -> tuple[list[int], list[int]]:
    """Split rows between the plugin's arithmetic and vLLM's kernels.

    Args:
        recipe_ids: Each row's recipe; 0 for a row without one.
        plans: Plans by recipe id.
        names: Experts by the id that vLLM's kernels use.

    Returns:
        The recipe ids of the plugin's rows, and the expert ids of the rows for vLLM's kernels; 0 for all other rows.
    """
    int_ids = {name: int_id for int_id, name in names.items()}
    recipes, rows = np.unique(np.asarray(recipe_ids, dtype=np.int64), return_inverse=True)
    ours = np.zeros(len(recipes), dtype=np.int64)
    theirs = np.zeros(len(recipes), dtype=np.int64)
    for number, recipe in enumerate(recipes.tolist()):
        plan = plans.get(recipe)
        if plan is not None and plan.gate is None and plan.weights == (1.0,):
            theirs[number] = int_ids.get(plan.experts[0], 0)
        elif plan is not None:
            ours[number] = recipe
    return ours[rows].tolist(), theirs[rows].tolist()
