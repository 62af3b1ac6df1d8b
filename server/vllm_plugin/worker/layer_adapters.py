"""Where vLLM's layers meet our arithmetic: the objects that they take for its LoRA kernels.

On the CPU ours does everything: vLLM's own kernels copy A and B once for every token, and index the slots with -1 for
rows without an expert, which gives such rows the last slot's expert. On other devices requests for one expert keep
vLLM's kernels, and only mixes and gates are ours.
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
from server.vllm_plugin.worker.torch_op import make_known


class Slots(Protocol):
    """What is resident; `server.vllm_plugin.worker.slots.ExpertModelManager`."""

    batch: Batch
    plans: Mapping[int, RecipePlan]
    ranks: Mapping[str, int]
    names: Mapping[int, str]


class BatchWrapper:
    """Takes vLLM's mapping of tokens to LoRAs once a step.

    Args:
        slots: What is resident.
        theirs: vLLM's own wrapper for the device, which keeps requests for one expert; None on the CPU.
    """

    def __init__(self, slots: Slots, theirs: Any | None) -> None:
        self._slots = slots
        self.theirs = theirs

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        """As vLLM calls it before the forward pass."""
        slots = self._slots
        if self.theirs is None:
            slots.batch.update(mapping.index_mapping, slots.plans, slots.ranks)
            return
        ours, single = split_recipes(mapping.index_mapping, slots.plans, slots.names)
        _, single_prompts = split_recipes(mapping.prompt_mapping, slots.plans, slots.names)
        slots.batch.update(ours, slots.plans, slots.ranks)
        theirs = replace(mapping, index_mapping=single, prompt_mapping=single_prompts)
        self.theirs.update_metadata(theirs, lora_index_to_id, max_loras, vocab_size, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if self.theirs is None:
            raise AttributeError(name)
        return getattr(self.theirs, name)


class ModuleWrapper:
    """Adds the experts' part to one linear module.

    Args:
        name: The module's name, by which a compiled model finds it.
        linear: The module's experts.
        theirs: As for `BatchWrapper`.
    """

    def __init__(self, name: str, linear: ExpertLinear, theirs: Any | None) -> None:
        self._name = name
        self._linear = linear
        self.theirs = theirs
        make_known(name, linear)

    def add_lora_linear(self, y: torch.Tensor, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        """As vLLM calls it after the base's own product; in place.

        Args:
            y: Shape (..., sum of the slices).
            x: Shape (..., d_in).
        """
        added = self.theirs.add_lora_linear(y, x, *args, **kwargs) if self.theirs is not None else None
        self.add(y, x)
        return added

    def add(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """Add our part in place; as `add_lora_linear`."""
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
    """What a linear layer does in a process that has the whole of it: its own forward pass, then the experts' part.

    vLLM's layers with LoRA do the same, but look a dozen attributes of modules up on their way, each of which torch
    searches for in Python: in decoding that costs several microseconds a layer, whether there is an expert or not.

    Args:
        base: The layer without LoRA.
        wrapper: Of the same layer; on a device where vLLM's kernels have no part.

    Returns:
        A function of the input, shape (..., d_in), to what `base` returns.
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
    """Split rows between our arithmetic and vLLM's kernels.

    Args:
        recipe_ids: Each row's recipe, 0 where there is none.
        plans: Plans by recipe.
        names: Experts by the id that vLLM's kernels know.

    Returns:
        The recipe ids of the rows that are ours, and the expert ids of the rows that are theirs; 0 elsewhere.
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
