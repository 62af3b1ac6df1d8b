"""Turns recipes into LoRARequests in vLLM's API server, refuses bad ones with a reason, and forgets old names.

vLLM asks a resolver for every ``model`` that it does not know, so no load call is needed and any replica can execute
any recipe. The canonical text of a recipe always means the same, so it serves as the request's name, which is the key
of vLLM's prefix cache.
"""

from __future__ import annotations

import asyncio
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import Any

from vllm.entrypoints.openai.models.serving import OpenAIServingModels, create_error_response
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from adapters_registry.disk.layout import EXPERT_ID
from server.engine.recipes import Base, Single
from server.vllm_plugin.expert_store import ExpertStore
from server.vllm_plugin.plans import RecipeRefused, forgetting_id, plan_of

NAME = "moergate"
MAX_REMEMBERED = 4096
"""Recipes that the API server remembers; an older one is resolved again at its next use."""

_resolve_lora = OpenAIServingModels.resolve_lora
_unload_lora = OpenAIServingModels.unload_lora_adapter


class RecipeResolver(LoRAResolver):  # type: ignore[misc]
    """Resolves recipes against the library's store.

    Args:
        store: The experts' files.
        num_slots: Experts that can be resident; a recipe that needs more is refused.
    """

    def __init__(self, store: ExpertStore, num_slots: int) -> None:
        self.store = store
        self._num_slots = num_slots

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Return the recipe's LoRARequest, or None for other names; vLLM sets the integer id itself.

        Raises:
            RecipeRefused: The name is a recipe, but cannot be executed.
        """
        return await asyncio.to_thread(self.find, lora_name)

    def find(self, name: str) -> LoRARequest | None:
        """Resolve a name like `resolve_lora`, but block."""
        recipe = self.store.recipe_of(name)
        if recipe is None or isinstance(recipe, Base):
            return None
        plan = self.store.check(recipe)
        if plan is None:
            return None
        if len(plan.experts) > self._num_slots:
            raise RecipeRefused(
                f"The recipe needs {len(plan.experts)} experts at once, but the engine has only {self._num_slots} "
                "slots (--max-loras)."
            )
        # The worker reads what to do from the path: an expert's folder, or the text of the recipe.
        path = str(self.store.folder_of(recipe.expert_id)) if isinstance(recipe, Single) else str(recipe)
        return LoRARequest(lora_name=name, lora_int_id=1, lora_path=path)


class ServedRecipes(dict[str, LoRARequest]):
    """Replaces vLLM's dictionary of resolved names, which never forgets a name and never checks it again.

    It holds up to `MAX_REMEMBERED` names and drops a name when its files change on disk. vLLM then resolves the name
    again, which finds damage before a worker does.

    Args:
        store: The experts' files.
    """

    def __init__(self, store: ExpertStore) -> None:
        super().__init__()
        self._store = store
        self._seen: dict[str, object] = {}

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) and self._signature(str(name)) == self._seen.get(str(name))

    def __setitem__(self, name: str, request: LoRARequest) -> None:
        super().__setitem__(name, request)
        self._seen[name] = self._signature(name)
        while len(self) > MAX_REMEMBERED:
            del self[next(iter(self))]

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._seen.pop(name, None)

    def _signature(self, name: str) -> object:
        try:
            recipe = self._store.recipe_of(name)
            return None if recipe is None else self._store.signature_of(plan_of(recipe))
        except RecipeRefused:
            return None


@wraps(_resolve_lora)
async def _resolve_checked(self: Any, lora_name: str) -> Any:
    if not isinstance(self.lora_requests, ServedRecipes):
        served = ServedRecipes(LoRAResolverRegistry.get_resolver(NAME).store)
        served.update(self.lora_requests)  # from --lora-modules
        self.lora_requests = served
    try:
        return await _resolve_lora(self, lora_name)
    except RecipeRefused as error:
        return create_error_response(message=str(error), err_type="BadRequestError", status_code=HTTPStatus.BAD_REQUEST)
    finally:
        lock = self.lora_resolver_lock.get(lora_name)
        if lock is not None and not lock.locked():
            del self.lora_resolver_lock[lora_name]


@wraps(_unload_lora)
async def _unload_everywhere(self: Any, request: Any) -> Any:
    """Free the engine's memory too, also of an expert that only mixes have used; vLLM only forgets the name."""
    known = self.lora_requests.get(request.lora_name)
    answer = await _unload_lora(self, request)
    if known is not None and isinstance(answer, str):
        await self.engine_client.remove_lora(known.lora_int_id)
    if EXPERT_ID.fullmatch(request.lora_name):
        await self.engine_client.remove_lora(forgetting_id(request.lora_name))
        return f"Success: LoRA adapter '{request.lora_name}' removed successfully."
    return answer


def install_resolver(adapters_dir: Path, num_slots: int) -> None:
    """Register the resolver with vLLM, once in a process.

    Args:
        adapters_dir: Root of the library's store.
        num_slots: Experts that can be resident.
    """
    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        resolver = RecipeResolver(ExpertStore(adapters_dir), num_slots)
        LoRAResolverRegistry.register_resolver(NAME, resolver)
        OpenAIServingModels.resolve_lora = _resolve_checked
        OpenAIServingModels.unload_lora_adapter = _unload_everywhere
