"""Visibility: which experts and policies a key may use.

A key is confined by name patterns, by tags of experts and by a tenant. It sees what passes all three.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Audience:
    """The keys that an expert or a policy is for.

    Attributes:
        tags: Tags that keys can be confined to.
        tenant: The owning tenant; empty if it is for everybody.
    """

    tags: frozenset[str] = frozenset()
    tenant: str = ""


EVERYBODY = Audience()


@dataclass(frozen=True, slots=True)
class Sight:
    """What a key may use; keys with equal visibility see the same.

    Attributes:
        experts: Glob patterns of expert names; one must match.
        policies: Glob patterns of policy names; one must match.
        tags: An expert must have one of these tags, and so must a policy that has any tags; empty means any.
        tenant: The tenant whose experts and policies are visible beside those for everybody; empty means all tenants.
    """

    experts: tuple[str, ...] = ("*",)
    policies: tuple[str, ...] = ("*",)
    tags: tuple[str, ...] = ()
    tenant: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is ever hidden."""
        return "*" in self.experts and not self.tags and not self.tenant

    def sees_expert(self, name: str, audience: Audience) -> bool:
        """Return whether an expert of this name and audience is visible."""
        is_tagged = not self.tags or not audience.tags.isdisjoint(self.tags)
        return is_tagged and self._is_of_tenant(audience) and _matches(name, self.experts)

    def sees_policy(self, name: str, audience: Audience) -> bool:
        """Return whether a policy of this name and audience is visible; one without tags is for keys of all tags."""
        is_tagged = not (self.tags and audience.tags) or not audience.tags.isdisjoint(self.tags)
        return is_tagged and self._is_of_tenant(audience) and _matches(name, self.policies)

    def _is_of_tenant(self, audience: Audience) -> bool:
        return not self.tenant or audience.tenant in ("", self.tenant)


EVERYTHING = Sight()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return "*" in patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
