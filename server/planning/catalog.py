"""The catalogue: everything that a caller can write into ``model``, as one immutable snapshot.

A request reads one snapshot from its first look to its last, so that a change of the library never shows half. What a
principal may not see is absent: names are looked up among those that it sees, and hidden ones are not among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from adapters_registry.names import KnownNames
from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from adapters_registry.visibility import Audience, Sight
from server.access.auth import Principal
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
from server.policies.live import LivePolicy

DEFAULT_POLICY = "auto"
MAX_VIEWS = 256
"""So many that a catalogue remembers, one for each way in which keys are confined."""


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
        pending: Policies that are there, but cannot decide yet, and whom they are for.
    """

    base_names: tuple[str, ...]
    experts: Mapping[str, AdapterRecord] = field(default_factory=dict)
    others: Mapping[str, AdapterRecord] = field(default_factory=dict)
    policies: Mapping[str, LivePolicy] = field(default_factory=dict)
    text_of: Callable[[str], str | None] = field(default=lambda _digest: None)
    is_read: bool = True
    pending: Callable[[], Mapping[str, Audience]] = field(default=dict)
    _views: dict[Sight, _View] = field(init=False, repr=False, compare=False, default_factory=dict)
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

    def _seen_by(self, principal: Principal) -> _View:
        view = self._views.get(principal.sight)
        if view is None:
            if len(self._views) >= MAX_VIEWS:
                del self._views[next(iter(self._views))]
            view = self._views[principal.sight] = _View.of(self, principal.sight)
        return view

    def sees(self, sight: Sight, record: AdapterRecord) -> bool:
        """Whether a version is visible: by its own card, and by that of its name's active version if there is one."""
        if sight.is_whole:
            return True
        active = self._by_name.get(record.name, record)
        is_open = sight.sees_expert(record.name, record.audience)
        return is_open and (active is record or sight.sees_expert(record.name, active.audience))

    def visible_to(self, principal: Principal) -> frozenset[str] | None:
        """Ids of the experts that the principal may use; None stands for all of them."""
        return None if principal.sight.is_whole else self._seen_by(principal).ids

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
        seen = self._seen_by(principal)
        if (policy := seen.policies.get(asked)) is not None:
            return Target("policy", asked, policy=policy)
        if (policy := seen.policies.get(asked.rpartition(":")[0])) is not None:
            return Target("policy", asked, policy=policy, threshold=_threshold(asked))
        if (record := seen.named.get(asked)) is not None:
            pinned = {asked} if asked == record.expert_id else set()
            return Target("expert", asked, recipe=Single(record.expert_id), pinned=frozenset(pinned))
        if "(" in asked or asked.startswith("set:"):
            recipe = self.recipe(asked, principal)
            pinned = set(experts_of(recipe) if asked.startswith("set:") else EXPERT_ID.findall(asked))
            return Target("recipe", asked, recipe=recipe, pinned=frozenset(pinned))
        raise self._not_found(asked, principal)

    def recipe(self, asked: str, principal: Principal) -> Recipe:
        """A recipe as a caller wrote it, bound to the versions of the experts that the caller may use.

        One that was named by its digest is as unknown as any if an expert in it is: its text is not the caller's.

        Raises:
            ModelNotFound: For an expert that does not exist or is hidden.
            BadRequest: It is no recipe, or none that can be executed.
        """
        try:
            recipe = parse_asked(asked)
            by_digest = isinstance(recipe, SetRef)
            if isinstance(recipe, SetRef):
                text = self.text_of(recipe.digest)
                if text is None:
                    raise self._not_found(asked, principal)
                recipe = parse(text)
            recipe = bind(recipe, lambda expert: self._visible_id(expert, principal, asked if by_digest else expert))
        except RecipeError as error:
            raise BadRequest(str(error), param="model") from None
        except ValueError as error:
            raise BadRequest(f"The recipe cannot be executed: {error}.", param="model") from None
        if isinstance(recipe, Ensemble):
            raise BadRequest("ensemble(...) is understood, but not executed yet; use mix(...).", param="model")
        return recipe

    def _visible_id(self, expert: str, principal: Principal, asked: str) -> str:
        record = self._seen_by(principal).named.get(expert)
        if record is None:
            raise self._not_found(asked, principal)
        return record.expert_id

    def listing(self, principal: Principal) -> list[dict[str, Any]]:
        """Entries of ``GET /v1/models`` for this caller: base, policies, experts."""
        seen = self._seen_by(principal)
        experts = sorted(seen.experts.values(), key=lambda record: record.name)
        shown = [_of_expert(record, record.name, self._base, principal) for record in experts]
        return [
            _entry(self._base, "base", None, {}),
            *(_of_policy(p, self._base) for p in seen.policies.values()),
            *shown,
        ]

    def entry(self, model: str, principal: Principal) -> dict[str, Any]:
        """The entry of whatever a caller can write into ``model``; raises as `resolve` does."""
        target = self.resolve(model, principal)
        if target.policy is not None:
            return _of_policy(target.policy, self._base)
        if target.kind == "base":
            return _entry(self._base, "base", None, {})
        record = self.record_of(str(target.recipe))
        if record is None:
            return _entry(model, "recipe", self._base, {"recipe": str(target.recipe)})
        name = record.name if record.expert_id in self.experts else record.expert_id
        return _of_expert(record, name, self._base, principal)

    @property
    def _base(self) -> str:
        return self.base_names[0]

    def _not_found(self, asked: str, principal: Principal) -> ModelNotFound | Unavailable:
        if not self.is_read:
            return Unavailable("The gateway has just started and is still reading its library.", retry_after_s=1)
        pending = (name for name, audience in self.pending().items() if principal.sight.sees_policy(name, audience))
        if any(name in (asked, asked.rpartition(":")[0]) for name in pending):
            return Unavailable("This policy is still being fitted; the experts can be asked by name.", retry_after_s=1)
        close = self._seen_by(principal).names.nearest(asked)
        shown = asked if len(asked) <= 100 else asked[:97] + "..."
        hint = f" Did you mean {' or '.join(close)}?" if close else " GET /v1/models lists what there is."
        return ModelNotFound(f"The model '{shown}' does not exist.{hint}", param="model")


@dataclass(frozen=True)
class _View:
    """What one way of being confined leaves of a catalogue.

    Attributes:
        experts: Active experts by id.
        named: What can be asked for, by name and by id; a draining version takes nothing new.
        policies: Policies by name.
        base_name: Of the base, which everybody sees.
    """

    experts: dict[str, AdapterRecord]
    named: dict[str, AdapterRecord]
    policies: dict[str, LivePolicy]
    base_name: str

    @classmethod
    def of(cls, catalog: Catalog, sight: Sight) -> _View:
        """Look at every expert and policy."""
        experts = {each.expert_id: each for each in catalog.experts.values() if catalog.sees(sight, each)}
        others = (each for each in catalog.others.values() if each.state is not AdapterState.DRAINING)
        named = {each.expert_id: each for each in others if catalog.sees(sight, each)} | experts
        named |= {each.name: each for each in experts.values()}
        policies = {name: each for name, each in catalog.policies.items() if sight.sees_policy(name, each.audience)}
        return cls(experts, named, policies, catalog.base_names[0])

    @cached_property
    def ids(self) -> frozenset[str]:
        """Of the active experts."""
        return frozenset(self.experts)

    @cached_property
    def names(self) -> KnownNames:
        """Of the base, policies and experts."""
        return KnownNames([self.base_name, *self.policies, *(each.name for each in self.experts.values())])


def _threshold(asked: str) -> float:
    text = asked.rpartition(":")[2]
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise BadRequest(f"'{text[:40]}' is no threshold; write policy:NUMBER, for example auto:0.3.", param="model")
    return threshold


def _of_policy(policy: LivePolicy, base: str) -> dict[str, Any]:
    return _entry(policy.name, "policy", base, {"router": policy.router_name, "card": policy.describe()})


def _of_expert(record: AdapterRecord, name: str, base: str, principal: Principal) -> dict[str, Any]:
    kept_back = {"obtained_from"}  # paths and hosts are the operator's
    if not principal.sight.is_whole:
        kept_back.add("composed_from")  # it names other experts
    details = {
        "id_with_version": record.expert_id,
        "card": record.card.model_dump(exclude=kept_back),
        "created": int(record.created_at.timestamp()),
    }
    return _entry(name, "expert", base, details)


def _entry(name: str, kind: str, parent: str | None, details: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "moergate",
        "parent": parent,
        "kind": kind,
    } | details
