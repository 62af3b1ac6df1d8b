"""The catalogue: everything that a caller can write into ``model``, as one immutable snapshot.

A request reads one snapshot from its first look to its last, so that a change of the library never shows half. What a
principal may not see is absent: unknown and hidden names give the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from adapters_registry.names import KnownNames, split_expert_id
from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from server.auth import Principal
from server.engine.recipes import (
    EXPERT_ID,
    Base,
    Ensemble,
    Recipe,
    RecipeError,
    SetRef,
    Single,
    bind,
    experts_of,
    parse,
    parse_asked,
)
from server.errors import BadRequest, ModelNotFound, Unavailable
from server.policies import LivePolicy

DEFAULT_POLICY = "auto"
MAX_VIEWS = 64
"""Views of one kind that a catalogue remembers, one for each list of patterns that keys have."""

Key = TypeVar("Key")
View = TypeVar("View")


@dataclass(frozen=True, slots=True)
class Target:
    """What a ``model`` means: something to execute, or a policy that will decide.

    `threshold` is what the caller wrote behind the policy's name (``policy:0.3``). `pinned` are the experts that the
    caller asked for by version.
    """

    kind: Literal["base", "expert", "policy", "recipe"]
    asked: str
    recipe: Recipe | None = None
    policy: LivePolicy | None = None
    threshold: float | None = None
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Catalog:
    """One moment of the library and its policies.

    Attributes:
        base_names: Names of the base; the first is the one that is shown.
        experts: Active experts by id.
        others: Versions by id that can be asked for by it (ready, canary), or serve what began on them (draining).
        policies: Policies by name.
        text_of: Text of a long recipe by its digest, or None.
        is_read: Whether the library has been read; before, nobody can say what does not exist.
        pending: Names of policies that are there, but cannot decide yet.
    """

    base_names: tuple[str, ...]
    experts: Mapping[str, AdapterRecord] = field(default_factory=dict)
    others: Mapping[str, AdapterRecord] = field(default_factory=dict)
    policies: Mapping[str, LivePolicy] = field(default_factory=dict)
    text_of: Callable[[str], str | None] = field(default=lambda _digest: None)
    is_read: bool = True
    pending: Callable[[], Collection[str]] = field(default=frozenset)
    _visible: dict[tuple[str, ...], frozenset[str]] = field(init=False, repr=False, compare=False, default_factory=dict)
    _known: dict[tuple[tuple[str, ...], tuple[str, ...]], KnownNames] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _whole: dict[str, bool] = field(init=False, repr=False, compare=False, default_factory=dict)

    @cached_property
    def _by_name(self) -> dict[str, AdapterRecord]:
        return {record.name: record for record in self.experts.values()}

    @cached_property
    def canaries(self) -> dict[str, AdapterRecord]:
        """Versions by name that get a share of the name's conversations."""
        return {r.name: r for r in self.others.values() if r.state is AdapterState.CANARY and r.share}

    def record_of(self, expert_id: str) -> AdapterRecord | None:
        """The version of this id, if it may serve anything."""
        return self.experts.get(expert_id) or self.others.get(expert_id)

    def _named(self, asked: str, principal: Principal) -> AdapterRecord | None:
        """What a caller means by a name or an id; a draining version takes nothing new.

        Whether the caller may see it is asked of the name, there or not: a hidden one takes no longer than none.
        """
        if not principal.may_use(split_expert_id(asked)[0]):
            return None
        record = self._by_name.get(asked) or self.record_of(asked)
        return None if record is None or record.state is AdapterState.DRAINING else record

    def visible_to(self, principal: Principal) -> frozenset[str] | None:
        """Ids of the experts that the principal may use; None stands for all of them."""
        if principal.sees_all:
            return None
        seen = self._visible.get(principal.experts)
        if seen is None:
            seen = frozenset(record.expert_id for record in self.experts.values() if principal.may_use(record.name))
            _remember(self._visible, principal.experts, seen)
        return seen

    def has_all_of(self, policy: LivePolicy) -> bool:
        """Whether all experts that one of the policies was fitted to are still there."""
        whole = self._whole.get(policy.name)
        if whole is None:
            whole = self._whole[policy.name] = policy.expert_ids <= self.experts.keys()
        return whole

    def resolve(self, model: str | None, principal: Principal) -> Target:
        """What a ``model`` means for this caller; absent or empty is the default policy.

        Raises:
            ModelNotFound: With the nearest names that the caller may see.
            Unavailable: The gateway has just started and does not know yet.
            BadRequest: The text looks like a recipe, but is none that can be executed.
        """
        asked = model or DEFAULT_POLICY
        if asked in self.base_names or asked == "base":
            return Target("base", asked, recipe=Base())
        if (policy := self._policy(asked, principal)) is not None:
            return Target("policy", asked, policy=policy)
        if (policy := self._policy(asked.rpartition(":")[0], principal)) is not None:
            return Target("policy", asked, policy=policy, threshold=_threshold(asked))
        if (record := self._named(asked, principal)) is not None:
            pinned = {asked} if asked == record.expert_id else set()
            return Target("expert", asked, recipe=Single(record.expert_id), pinned=frozenset(pinned))
        if "(" in asked or asked.startswith("set:"):
            recipe = self.recipe(asked, principal)
            pinned = set(experts_of(recipe) if asked.startswith("set:") else EXPERT_ID.findall(asked))
            return Target("recipe", asked, recipe=recipe, pinned=frozenset(pinned))
        raise self._not_found(asked, principal)

    def recipe(self, asked: str, principal: Principal) -> Recipe:
        """A recipe as a caller wrote it, bound to the versions of the experts that the caller may use.

        Raises:
            ModelNotFound: For an expert that does not exist or is hidden.
            BadRequest: It is no recipe, or none that can be executed.
        """
        try:
            recipe = parse_asked(asked)
            if isinstance(recipe, SetRef):
                text = self.text_of(recipe.digest)
                if text is None:
                    raise self._not_found(asked, principal)
                recipe = parse(text)
            recipe = bind(recipe, lambda expert: self._visible_id(expert, principal))
        except RecipeError as error:
            raise BadRequest(str(error), param="model") from None
        except ValueError as error:
            raise BadRequest(f"The recipe cannot be executed: {error}.", param="model") from None
        if isinstance(recipe, Ensemble):
            raise BadRequest("ensemble(...) is understood, but not executed yet; use mix(...).", param="model")
        return recipe

    def _policy(self, name: str, principal: Principal) -> LivePolicy | None:
        return self.policies.get(name) if principal.may_ask(name) else None

    def _visible_id(self, expert: str, principal: Principal) -> str:
        record = self._named(expert, principal)
        if record is None:
            raise self._not_found(expert, principal)
        return record.expert_id

    def listing(self, principal: Principal) -> list[dict[str, Any]]:
        """Entries of ``GET /v1/models`` for this caller: base, policies, experts."""
        base = self.base_names[0]
        entries = [_entry(base, "base", None, {})]
        for policy in filter(lambda each: principal.may_ask(each.name), self.policies.values()):
            entries.append(
                _entry(policy.name, "policy", base, {"router": policy.router_name, "card": policy.describe()})
            )
        for record in sorted(self.experts.values(), key=lambda r: r.name):
            if principal.may_use(record.name):
                details = {
                    "id_with_version": record.expert_id,
                    "card": record.card.model_dump(exclude={"obtained_from"}),  # paths and hosts are the operator's
                    "created": int(record.created_at.timestamp()),
                }
                entries.append(_entry(record.name, "expert", base, details))
        return entries

    def _not_found(self, asked: str, principal: Principal) -> ModelNotFound | Unavailable:
        if not self.is_read:
            return Unavailable("The gateway has just started and is still reading its library.", retry_after_s=1)
        if any(name in (asked, asked.rpartition(":")[0]) for name in filter(principal.may_ask, self.pending())):
            return Unavailable("This policy is still being fitted; the experts can be asked by name.", retry_after_s=1)
        close = self._names_seen_by(principal).nearest(asked)
        shown = asked if len(asked) <= 100 else asked[:97] + "..."
        hint = f" Did you mean {' or '.join(close)}?" if close else " GET /v1/models lists what there is."
        return ModelNotFound(f"The model '{shown}' does not exist.{hint}", param="model")

    def _names_seen_by(self, principal: Principal) -> KnownNames:
        """Of the base, policies and experts."""
        patterns = principal.experts, principal.policies
        known = self._known.get(patterns)
        if known is None:
            policies = filter(principal.may_ask, self.policies)
            experts = (record.name for record in self.experts.values() if principal.may_use(record.name))
            known = KnownNames([*self.base_names[:1], *policies, *experts])
            _remember(self._known, patterns, known)
        return known


def _remember(views: dict[Key, View], key: Key, view: View) -> None:
    if len(views) >= MAX_VIEWS:
        views.clear()
    views[key] = view


def _threshold(asked: str) -> float:
    text = asked.rpartition(":")[2]
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise BadRequest(f"'{text[:40]}' is no threshold; write policy:NUMBER, for example auto:0.3.", param="model")
    return threshold


def _entry(name: str, kind: str, parent: str | None, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "moergate",
        "parent": parent,
        "kind": kind,
    } | details
