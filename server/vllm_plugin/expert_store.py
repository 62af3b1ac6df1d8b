"""The library's store as the engine reads it: an expert's folder, its vectors for gates, and the texts of long recipes.

The engine checks the files itself, because they may have been damaged since registration. It never writes.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from adapters_registry.disk.layout import (
    ADAPTER_FILES,
    CONFIG_FILE,
    EXPERT_ID,
    RECIPES_FOLDER,
    SHA256,
    WEIGHTS_FILE,
    content_hash,
    recipe_digest,
)
from routers.gates.base import GATES
from server.engine.recipes import Recipe, RecipeError, SetRef, parse
from server.vllm_plugin.plans import FIXED, RecipePlan, RecipeRefused, plan_of

MAX_FOLDERS = 65536
_CHUNK_BYTES = 1 << 20


class ExpertStore:
    """Finds and checks experts' files.

    Args:
        root: Root of the store, which the gateway's registry writes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders: dict[str, Path] = {}

    def folder_of(self, expert_id: str) -> Path | None:
        """Return the folder of an expert's files, or None if it is missing or the version is ambiguous."""
        if EXPERT_ID.fullmatch(expert_id) is None:
            return None
        version = expert_id.rpartition("@")[2]
        known = self._folders.get(version)
        if known is not None and (known / CONFIG_FILE).is_file():
            return known
        found = [
            folder
            for folder in self.root.glob(version + "*")
            if SHA256.fullmatch(folder.name) and (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()
        ]
        if len(found) != 1:
            return None
        if len(self._folders) >= MAX_FOLDERS:
            self._folders.clear()
        self._folders[version] = found[0]
        return found[0]

    def recipe_of(self, name: str) -> Recipe | None:
        """Return the recipe that a model's name stands for, with ``set:`` read from the store; None for other names.

        Raises:
            RecipeRefused: The stored text is damaged.
        """
        try:
            recipe = parse(name)
        except RecipeError:
            return None
        if not isinstance(recipe, SetRef):
            return recipe
        try:
            text = (self.root / RECIPES_FOLDER / recipe.digest).read_text("utf-8")
        except OSError:
            return None
        if recipe_digest(text) != recipe.digest:
            raise RecipeRefused(f"The stored text of {name} is damaged; the gateway must write it again.")
        return parse(text)

    def check(self, recipe: Recipe) -> RecipePlan | None:
        """Return the recipe's plan after a check of every expert's files; None if an expert does not exist.

        Files are read once; later checks compare their size and modification time. Blocks.

        Raises:
            RecipeRefused: Files are damaged, a gate's vectors are missing, or the recipe cannot be executed.
        """
        plan = plan_of(recipe)
        for expert_id in plan.experts:
            folder = self.folder_of(expert_id)
            if folder is None:
                return None
            if not _is_whole(folder, _stats_of(folder)):
                raise RecipeRefused(f"The files of {expert_id} are damaged; register the adapter again.")
            kind = plan.gate.kind if plan.gate is not None else FIXED
            if kind != FIXED and not self._vectors_file(kind, folder).is_file():
                raise RecipeRefused(f"{expert_id} has no vectors for gate({kind}); restart the gateway.")
        return plan

    def signature_of(self, plan: RecipePlan) -> tuple[object, ...] | None:
        """Return size and modification time of all files of a plan's experts; None if one is missing."""
        try:
            folders = [self.folder_of(expert_id) for expert_id in plan.experts]
            return tuple(_stats_of(folder) for folder in folders if folder is not None)
        except OSError:
            return None

    def vectors_of(self, kind: str, folder: Path) -> dict[str, torch.Tensor]:
        """Return an expert's vectors for a gate by module, each float32 of shape (d_in,); empty if there are none."""
        try:
            loaded: dict[str, torch.Tensor] = load_file(self._vectors_file(kind, folder))
            return loaded
        except (OSError, SafetensorError):
            return {}

    def _vectors_file(self, kind: str, folder: Path) -> Path:
        return self.root / GATES[kind].artefact / f"{folder.name}.safetensors"


def _stats_of(folder: Path) -> tuple[tuple[int, int, int], ...]:
    stats = [os.stat(folder / name) for name in ADAPTER_FILES]
    return tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats)


@lru_cache(maxsize=4096)
def _is_whole(folder: Path, _stats: tuple[tuple[int, int, int], ...]) -> bool:
    """Whether the files have the content that names the folder; cached until `_stats` change."""
    digest = hashlib.sha256()
    with (folder / WEIGHTS_FILE).open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return content_hash((folder / CONFIG_FILE).read_bytes(), digest.hexdigest()) == folder.name
