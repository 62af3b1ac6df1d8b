"""Who may use what: whom an expert or a policy is for, and what a key sees.

A key is confined by patterns of names, by tags of experts and by a tenant; what it sees passes all of them.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Audience:
    """Whom an expert or a policy is for.

    Attributes:
        tags: What keys can be confined by.
        tenant: Whose it is; empty if it is for everybody.
    """

    tags: frozenset[str] = frozenset()
    tenant: str = ""


EVERYBODY = Audience()


@dataclass(frozen=True, slots=True)
class Sight:
    """What a key may use; keys with equal sights see the same.

    Attributes:
        experts: Glob patterns of expert names, of which one must match.
        policies: The same of policies.
        tags: An expert must have one of them, and so must a policy that has any tags; empty for no such bound.
        tenant: Whose experts and policies it sees besides those for everybody; empty for those of all tenants.
    """

    experts: tuple[str, ...] = ("*",)
    policies: tuple[str, ...] = ("*",)
    tags: tuple[str, ...] = ()
    tenant: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether no expert is hidden, whatever there is."""
        return "*" in self.experts and not self.tags and not self.tenant

    def sees_expert(self, name: str, audience: Audience) -> bool:
        """Whether an expert of this name, for these, is visible."""
        is_tagged = not self.tags or not audience.tags.isdisjoint(self.tags)
        return is_tagged and self._is_of_tenant(audience) and _matches(name, self.experts)

    def sees_policy(self, name: str, audience: Audience) -> bool:
        """The same of a policy; one without tags is for keys of all tags."""
        is_tagged = not (self.tags and audience.tags) or not audience.tags.isdisjoint(self.tags)
        return is_tagged and self._is_of_tenant(audience) and _matches(name, self.policies)

    def _is_of_tenant(self, audience: Audience) -> bool:
        return not self.tenant or audience.tenant in ("", self.tenant)


EVERYTHING = Sight()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return "*" in patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
