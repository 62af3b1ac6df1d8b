"""The catalog: everything that a caller can write into ``model``, as one immutable snapshot.

A request reads a single snapshot, so it never sees half of a change to the library. Names are looked up only among the
experts and policies that the principal may see; hidden ones do not exist for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from adapters_registry.disk.layout import EXPERT_ID
from adapters_registry.names import KnownNames
from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from adapters_registry.visibility import Audience, Sight
from server.access.auth import Principal
from server.engine.recipes import (
    Base,
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
"""Maximum number of cached views of a catalog, one per distinct key visibility."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a ``model`` means: a recipe to execute, or a policy that will decide.

    Attributes:
        kind: What the name stands for.
        asked: The text that the caller wrote.
        recipe: The recipe, unless a policy decides.
        policy: The policy that decides.
        threshold: The threshold after the policy's name (``policy:0.3``), if the caller wrote one.
        pinned: Ids of experts that the caller asked for by version.
    """

    kind: Literal["base", "expert", "policy", "recipe"]
    asked: str
    recipe: Recipe | None = None
    policy: LivePolicy | None = None
    threshold: float | None = None
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Catalog:
    """The library and its policies at one moment.

    Attributes:
        base_names: Names of the base; listings show the first.
        experts: Active experts by id.
        others: Other versions in service, by id: ready and canary versions, and draining ones for old conversations.
        policies: Policies by name.
        text_of: Returns the text of a long recipe by its digest, or None.
        is_read: Whether the library has been read; before that, no name can be called unknown.
        pending: Returns the policies that cannot decide yet, with their audiences.
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
        """Versions that get a share of their expert's conversations, by name."""
        return {r.name: r for r in self.others.values() if r.state is AdapterState.CANARY and r.share}

    def record_of(self, expert_id: str) -> AdapterRecord | None:
        """Return the version with this id, if it is in service."""
        return self.experts.get(expert_id) or self.others.get(expert_id)

    def _seen_by(self, principal: Principal) -> _View:
        view = self._views.get(principal.sight)
        if view is None:
            if len(self._views) >= MAX_VIEWS:
                del self._views[next(iter(self._views))]
            view = self._views[principal.sight] = _View.of(self, principal.sight)
        return view

    def sees(self, sight: Sight, record: AdapterRecord) -> bool:
        """Return whether a version is visible, judged by its card and by the card of its expert's active version."""
        if sight.is_whole:
            return True
        active = self._by_name.get(record.name, record)
        is_open = sight.sees_expert(record.name, record.audience)
        return is_open and (active is record or sight.sees_expert(record.name, active.audience))

    def visible_to(self, principal: Principal) -> frozenset[str] | None:
        """Return the ids of the experts that the principal may use; None stands for all of them."""
        return None if principal.sight.is_whole else self._seen_by(principal).ids

    def has_all_of(self, policy: LivePolicy) -> bool:
        """Return whether all experts that a policy was fitted to are still active."""
        whole = self._whole.get(policy.name)
        if whole is None:
            whole = self._whole[policy.name] = policy.expert_ids <= self.experts.keys()
        return whole

    def resolve(self, model: str | None, principal: Principal) -> Target:
        """Return what a ``model`` means for this caller; an absent or empty one means the default policy.

        Raises:
            ModelNotFound: The name is unknown; the message suggests similar names that the caller may see.
            Unavailable: The gateway has just started and has not read its library yet.
            BadRequest: The text looks like a recipe, but cannot be executed.
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
        """Parse a recipe and bind its names to the versions that the caller may use.

        A recipe that is named by its digest is reported as unknown if one of its experts is, because its text may not
        be the caller's.

        Raises:
            ModelNotFound: An expert does not exist or is hidden.
            BadRequest: The text is not a recipe, or the recipe cannot be executed.
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
        return recipe

    def _visible_id(self, expert: str, principal: Principal, asked: str) -> str:
        record = self._seen_by(principal).named.get(expert)
        if record is None:
            raise self._not_found(asked, principal)
        return record.expert_id

    def listing(self, principal: Principal) -> list[dict[str, Any]]:
        """Return the entries of ``GET /v1/models`` for this caller: base, policies, experts."""
        seen = self._seen_by(principal)
        experts = sorted(seen.experts.values(), key=lambda record: record.name)
        shown = [_of_expert(record, record.name, self._base, principal) for record in experts]
        return [
            _entry(self._base, "base", None, {}),
            *(_of_policy(p, self._base) for p in seen.policies.values()),
            *shown,
        ]

    def entry(self, model: str, principal: Principal) -> dict[str, Any]:
        """Return the entry of anything that a caller can write into ``model``; raises the errors of `resolve`."""
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
            return Unavailable(
                "This policy is still being fitted; its experts can already be requested by name.", retry_after_s=1
            )
        close = self._seen_by(principal).names.nearest(asked)
        shown = asked if len(asked) <= 100 else asked[:97] + "..."
        hint = f" Did you mean {' or '.join(close)}?" if close else " GET /v1/models lists all models."
        return ModelNotFound(f"The model '{shown}' does not exist.{hint}", param="model")


@dataclass(frozen=True)
class _View:
    """The part of a catalog that one key visibility leaves.

    Attributes:
        experts: Active experts by id.
        named: Versions that can be asked for, by name and by id; draining versions take no new requests.
        policies: Policies by name.
        base_name: Name of the base, which is always visible.
    """

    experts: dict[str, AdapterRecord]
    named: dict[str, AdapterRecord]
    policies: dict[str, LivePolicy]
    base_name: str

    @classmethod
    def of(cls, catalog: Catalog, sight: Sight) -> _View:
        """Select the visible experts and policies of a catalog."""
        experts = {each.expert_id: each for each in catalog.experts.values() if catalog.sees(sight, each)}
        others = (each for each in catalog.others.values() if each.state is not AdapterState.DRAINING)
        named = {each.expert_id: each for each in others if catalog.sees(sight, each)} | experts
        named |= {each.name: each for each in experts.values()}
        policies = {name: each for name, each in catalog.policies.items() if sight.sees_policy(name, each.audience)}
        return cls(experts, named, policies, catalog.base_names[0])

    @cached_property
    def ids(self) -> frozenset[str]:
        """Ids of the active experts."""
        return frozenset(self.experts)

    @cached_property
    def names(self) -> KnownNames:
        """Names of the base, the policies and the experts."""
        return KnownNames([self.base_name, *self.policies, *(each.name for each in self.experts.values())])


def _threshold(asked: str) -> float:
    text = asked.rpartition(":")[2]
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise BadRequest(f"'{text[:40]}' is not a threshold; write policy:NUMBER, for example auto:0.3.", param="model")
    return threshold


def _of_policy(policy: LivePolicy, base: str) -> dict[str, Any]:
    return _entry(policy.name, "policy", base, {"router": policy.router_name, "card": policy.describe()})


def _of_expert(record: AdapterRecord, name: str, base: str, principal: Principal) -> dict[str, Any]:
    hidden = {"obtained_from"}  # paths and hosts concern only the operator
    if not principal.sight.is_whole:
        hidden.add("composed_from")  # it names other experts
    details = {
        "id_with_version": record.expert_id,
        "card": record.card.model_dump(exclude=hidden),
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
