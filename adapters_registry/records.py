"""What the registry keeps and hands out: manifests, cards, adapter records, key records, and the states' table.

Manifests come from outside and are pydantic models that refuse unknown fields; records are our own and are frozen
dataclasses. Nothing here reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from adapters_registry.errors import BadManifest, Problem
from adapters_registry.names import check_name
from adapters_registry.sources import Provenance, Source
from adapters_registry.usage import NO_LIMITS, KeyLimits

MAX_EXAMPLES = 2000
MAX_EXAMPLE_CHARS = 8000
MAX_DESCRIPTION_CHARS = 4000
MAX_CARD_ITEMS = 64
MAX_CARD_ITEM_CHARS = 64


def utc_now() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


# -- what callers hand in -----------------------------------------------------------------------------------------


def _without_nul(text: str) -> str:
    if "\0" in text:  # PostgreSQL cannot store it, and no prompt needs it
        raise ValueError("must not contain the NUL character")
    return text


def _valid_name(name: str) -> str:
    if (problem := check_name(name)) is not None:
        raise ValueError(f"{problem.what}. {problem.fix}")
    return name


_Word = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CARD_ITEM_CHARS), AfterValidator(_without_nul)]
_Words = Annotated[list[_Word], Field(max_length=MAX_CARD_ITEMS)]
_Line = Annotated[str, StringConstraints(max_length=200), AfterValidator(_without_nul)]
_Example = Annotated[str, StringConstraints(min_length=1, max_length=MAX_EXAMPLE_CHARS), AfterValidator(_without_nul)]
_Examples = Annotated[list[_Example], Field(max_length=MAX_EXAMPLES)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Composition(_Strict):
    """How a composed adapter was made: the recipe with versions, the merge formula, and its options."""

    recipe: Annotated[str, StringConstraints(max_length=8192), AfterValidator(_without_nul)]
    method: _Line
    rank: int | None = None
    density: float | None = None
    seed: int | None = None


class Card(_Strict):
    """What an expert is for, in words: shown to people, and read by some routers."""

    description: Annotated[str, StringConstraints(max_length=MAX_DESCRIPTION_CHARS), AfterValidator(_without_nul)] = ""
    tags: _Words = Field(default_factory=list)
    tasks: _Words = Field(default_factory=list)
    languages: _Words = Field(default_factory=list)
    license: _Line = ""
    owner: _Line = ""
    composed_from: Composition | None = None
    obtained_from: Provenance | None = None


class Manifest(_Strict):
    """A registration: the expert's name, where its files are, its card, and prompts that it is good at."""

    name: Annotated[str, AfterValidator(_valid_name)]
    source: Source | None = None
    card: Card = Field(default_factory=Card)
    examples: _Examples = Field(default_factory=list)


_EXAMPLES: TypeAdapter[list[str]] = TypeAdapter(_Examples, config=ConfigDict(strict=True))


def parse_manifest(raw: bytes | str | Mapping[str, Any]) -> Manifest:
    """Read a manifest from JSON text or parsed JSON. Raises BadManifest with every problem."""
    try:
        if isinstance(raw, (bytes, str)):
            return Manifest.model_validate_json(raw)
        return Manifest.model_validate(dict(raw))
    except ValidationError as error:
        raise BadManifest(_problems(error, "manifest")) from None


def parse_examples(raw: Any) -> tuple[str, ...]:
    """Check example prompts on their own. Raises BadManifest with every problem."""
    try:
        return tuple(_EXAMPLES.validate_python(raw))
    except ValidationError as error:
        raise BadManifest(_problems(error, "examples")) from None


def _problems(error: ValidationError, root: str) -> list[Problem]:
    """pydantic's findings in our shape; the input itself is not repeated."""
    found = []
    for detail in error.errors(include_input=False, include_url=False):
        where = ".".join(ascii(part)[1:-1] if isinstance(part, str) else str(part) for part in detail["loc"])
        known = ", ".join(Manifest.model_fields)
        fix = f"Known fields are {known}." if detail["type"] == "extra_forbidden" else "Correct it and send it again."
        found.append(Problem(where or root, detail["msg"], fix))
    return found


# -- what the registry keeps --------------------------------------------------------------------------------------


class AdapterState(StrEnum):
    """Where a version stands in its life; `TRANSITIONS` says what may follow what."""

    REGISTERED = "registered"
    VALIDATING = "validating"
    READY = "ready"
    ACTIVE = "active"
    DRAINING = "draining"
    RETIRED = "retired"
    REJECTED = "rejected"


TRANSITIONS: Mapping[AdapterState, frozenset[AdapterState]] = {
    AdapterState.REGISTERED: frozenset({AdapterState.VALIDATING, AdapterState.REJECTED}),
    AdapterState.VALIDATING: frozenset({AdapterState.READY, AdapterState.REJECTED}),
    AdapterState.READY: frozenset({AdapterState.ACTIVE, AdapterState.RETIRED}),
    AdapterState.ACTIVE: frozenset({AdapterState.DRAINING, AdapterState.RETIRED}),
    AdapterState.DRAINING: frozenset({AdapterState.ACTIVE, AdapterState.RETIRED}),
    AdapterState.RETIRED: frozenset({AdapterState.ACTIVE}),  # registered again with the same content
    AdapterState.REJECTED: frozenset(),
}
"""Validation happens before anything is stored, so a stored version is born ACTIVE and only two states are in use."""


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One immutable version of an expert; only state, card and examples change.

    Attributes:
        version: First 8 hex digits of `sha256`.
        sha256: Content hash of normalised config and weights; names the folder in the store.
        rank: Largest rank of any module.
        alpha: `lora_alpha` of the config.
        target_modules: Short names of the adapted modules, sorted, such as ``("k_proj", "q_proj")``.
        size_bytes: Size of the weights' file.
        base_model: The base that the adapter's config names; may be empty.
    """

    name: str
    version: str
    sha256: str
    state: AdapterState
    card: Card
    examples: tuple[str, ...]
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    size_bytes: int
    base_model: str
    created_at: datetime
    updated_at: datetime

    @property
    def expert_id(self) -> str:
        """`name@sha8`, as callers, routers and recipes name this version."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key without its secret.

    Attributes:
        hash: SHA-256 of the whole key, in hex.
        scopes: What the key may do, such as ``infer`` and ``admin``.
        experts: Glob patterns of the expert names that the key may see.
        policies: The same of policies.
        limits: How much it may use.
    """

    key_id: str
    name: str
    hash: str
    scopes: frozenset[str]
    experts: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None = None
    expires_at: datetime | None = None
    policies: tuple[str, ...] = ("*",)
    limits: KeyLimits = NO_LIMITS

    def is_usable(self, now: datetime | None = None) -> bool:
        """Whether the key is neither revoked nor expired."""
        moment = now or utc_now()
        return self.revoked_at is None and (self.expires_at is None or moment < self.expires_at)
