"""In vLLM's API server: turns recipes into LoRARequests, refuses bad ones with a reason, and forgets old names.

vLLM asks a resolver for every ``model`` that it does not know, so that no load call is needed and any replica can
execute any recipe. The canonical text of a recipe never means anything else, so it is the request's name, by which
vLLM keys its prefix cache.
"""

from __future__ import annotations

import asyncio
import os
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels, create_error_response
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from server.engine.recipes import MAX_EXPERTS, Base, Single
from server.vllm_plugin.plans import RecipeRefused
from server.vllm_plugin.store import ExpertStore

NAME = "moergate"
MAX_REMEMBERED = 4096
"""Names that the API server remembers; an older one is resolved again when it is asked for."""

_resolve_lora = OpenAIServingModels.resolve_lora


class RecipeResolver(LoRAResolver):  # type: ignore[misc]
    """Resolves recipes against the library's store.

    Args:
        store: Has the experts' files.
        num_slots: Experts that can be resident; a recipe that needs more is refused.
    """

    def __init__(self, store: ExpertStore, num_slots: int) -> None:
        self._store = store
        self._num_slots = num_slots

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The recipe's LoRARequest, or None if the name is none of ours; vLLM sets the integer id itself.

        Raises:
            RecipeRefused: It is a recipe, but cannot be executed.
        """
        return await asyncio.to_thread(self._resolve, lora_name)

    def _resolve(self, name: str) -> LoRARequest | None:
        recipe = self._store.recipe_of(name)
        if recipe is None or isinstance(recipe, Base):
            return None
        plan = self._store.check(recipe)
        if plan is None:
            return None
        if len(plan.experts) > self._num_slots:
            raise RecipeRefused(
                f"The recipe needs {len(plan.experts)} experts at once, but the engine has {self._num_slots} slots "
                "for them (--max-loras)."
            )
        # The path is where the worker finds what to do: an expert's folder, or the text of the recipe.
        path = str(self._store.folder_of(recipe.expert_id)) if isinstance(recipe, Single) else str(recipe)
        return LoRARequest(lora_name=name, lora_int_id=1, lora_path=path)


@wraps(_resolve_lora)
async def _resolve_bounded(self: Any, lora_name: str) -> Any:
    try:
        return await _resolve_lora(self, lora_name)
    except RecipeRefused as error:
        return create_error_response(message=str(error), err_type="BadRequestError", status_code=HTTPStatus.BAD_REQUEST)
    finally:
        lock = self.lora_resolver_lock.get(lora_name)
        if lock is not None and not lock.locked():
            del self.lora_resolver_lock[lora_name]
        while len(self.lora_requests) > MAX_REMEMBERED:
            del self.lora_requests[next(iter(self.lora_requests))]


def install_resolver(adapters_dir: str) -> None:
    """Register the resolver with vLLM, once in a process."""
    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        num_slots = int(os.environ.get("MOERGATE_EXPERT_SLOTS", MAX_EXPERTS))
        LoRAResolverRegistry.register_resolver(NAME, RecipeResolver(ExpertStore(Path(adapters_dir)), num_slots))
        OpenAIServingModels.resolve_lora = _resolve_bounded
