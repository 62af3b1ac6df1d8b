"""Which version of an expert a request gets: the active one, or the canary for its share of the conversations.

A conversation stays on the version that it began on, also when another one has become active meanwhile, for as long as
the old one drains. A version that the caller named stays what it is.
"""

from __future__ import annotations

from collections.abc import Collection

from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from adapters_registry.visibility import Sight
from server.engine.recipes import Recipe, bind, experts_of
from server.planning.catalog import Catalog
from server.planning.conversations import Choice, Conversation, ConversationMemory

_SERVES = frozenset({AdapterState.ACTIVE, AdapterState.CANARY, AdapterState.DRAINING})


class Versions:
    """See the module's docstring.

    Args:
        memory: What conversations began on.
    """

    def __init__(self, memory: ConversationMemory) -> None:
        self._memory = memory

    def choose(
        self, recipe: Recipe, pinned: Collection[str], catalog: Catalog, conversation: Conversation, sight: Sight
    ) -> tuple[Recipe, tuple[Choice, ...]]:
        """The recipe with the versions that the conversation gets, and what to remember; `pinned` ids stay.

        A version that the caller does not see is never chosen.
        """
        chosen = {
            expert_id: self._version_of(record, catalog, conversation, sight)
            for expert_id in experts_of(recipe)
            if expert_id not in pinned and (record := catalog.experts.get(expert_id)) is not None
        }
        choices = tuple((_subject_of(expert_id.partition("@")[0]), version) for expert_id, version in chosen.items())
        if all(before == after for before, after in chosen.items()):
            return recipe, choices
        return bind(recipe, lambda expert_id: chosen.get(expert_id, expert_id)), choices

    def _version_of(self, active: AdapterRecord, catalog: Catalog, conversation: Conversation, sight: Sight) -> str:
        began_on = self._memory.get(conversation, _subject_of(active.name))
        version = catalog.record_of(began_on) if began_on else None
        if version is None or version.name != active.name or version.state not in _SERVES:
            canary = catalog.canaries.get(active.name)
            has_lot = canary is not None and conversation.lot(active.name) < (canary.share or 0.0)
            version = canary if canary is not None and has_lot else active
        return version.expert_id if catalog.sees(sight, version) else active.expert_id


def _subject_of(name: str) -> str:
    return f"version {name}"
