"""Chooses the version of an expert that a request gets: the active one, or the canary for its share of conversations.

A conversation stays on the version that it began on while that version drains, even if another one has become active.
A version that the caller named is never replaced.
"""

from __future__ import annotations

from collections.abc import Collection

from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from adapters_registry.visibility import Sight
from routers.base import name_of
from server.engine.recipes import Recipe, bind, experts_of
from server.planning.catalog import Catalog
from server.planning.conversations import Choice, Conversation, ConversationMemory

_SERVING = frozenset({AdapterState.ACTIVE, AdapterState.CANARY, AdapterState.DRAINING})


class VersionChooser:
    """Binds the experts of a recipe to the versions that a conversation gets.

    Args:
        memory: Versions that conversations began on.
    """

    def __init__(self, memory: ConversationMemory) -> None:
        self._memory = memory

    def choose(
        self, recipe: Recipe, pinned: Collection[str], catalog: Catalog, conversation: Conversation, sight: Sight
    ) -> tuple[Recipe, tuple[Choice, ...]]:
        """Return the recipe with the conversation's versions, and what to remember for the conversation.

        Versions in `pinned` are kept. A version that the caller may not see is never chosen.
        """
        chosen = {
            expert_id: self._version_of(record, catalog, conversation, sight)
            for expert_id in experts_of(recipe)
            if expert_id not in pinned and (record := catalog.experts.get(expert_id)) is not None
        }
        choices = tuple((_subject_of(name_of(expert_id)), version) for expert_id, version in chosen.items())
        if all(before == after for before, after in chosen.items()):
            return recipe, choices
        return bind(recipe, lambda expert_id: chosen.get(expert_id, expert_id)), choices

    def _version_of(self, active: AdapterRecord, catalog: Catalog, conversation: Conversation, sight: Sight) -> str:
        began_on = self._memory.get(conversation, _subject_of(active.name))
        version = catalog.record_of(began_on) if began_on else None
        if version is None or version.name != active.name or version.state not in _SERVING:
            canary = catalog.canaries.get(active.name)
            is_drawn = canary is not None and conversation.lot(active.name) < (canary.share or 0.0)
            version = canary if canary is not None and is_drawn else active
        return version.expert_id if catalog.sees(sight, version) else active.expert_id


def _subject_of(name: str) -> str:
    return f"version {name}"
