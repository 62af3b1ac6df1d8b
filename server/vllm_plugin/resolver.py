"""Finds an expert's files by its id, so that no load call is needed and any replica can serve any expert.

vLLM's OpenAI server asks a resolver for every ``model`` that it does not know. The id ``name@sha8`` leads to
the folder of the library's store whose name, the content hash, begins with ``sha8``; folders are immutable,
so a name never means anything else.
"""

from __future__ import annotations

from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

from server.engine.recipes import RecipeError, Single, parse

NAME = "moergate"


def find_folder(adapters_dir: Path, expert_id: str) -> Path | None:
    """The folder of an expert's files, or None if there is none or the hash is ambiguous."""
    version = expert_id.rpartition("@")[2]
    found = [
        folder
        for folder in adapters_dir.glob(version + "*")
        if len(folder.name) == 64 and (folder / "adapter_config.json").is_file()
    ]
    return found[0] if len(found) == 1 else None


class LibraryResolver(LoRAResolver):  # type: ignore[misc]
    """Resolves expert ids to folders of the library's store."""

    def __init__(self, adapters_dir: Path) -> None:
        self._adapters_dir = adapters_dir

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The expert's LoRARequest, or None if the name is no expert of ours; vLLM sets the integer id itself."""
        try:
            recipe = parse(lora_name)
        except RecipeError:
            return None
        if not isinstance(recipe, Single):
            return None
        folder = find_folder(self._adapters_dir, recipe.expert_id)
        if folder is None:
            return None
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))


def install_resolver(adapters_dir: str) -> None:
    """Register the resolver with vLLM, once in a process."""
    if NAME not in LoRAResolverRegistry.get_supported_resolvers():
        LoRAResolverRegistry.register_resolver(NAME, LibraryResolver(Path(adapters_dir)))
