"""Values of the registry: manifests, cards, adapter records, key records, changes.

Manifests come from outside: they are pydantic models that refuse unknown fields. Records are internal: they are frozen
dataclasses. Nothing here reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    computed_field,
    field_serializer,
)

from adapters_registry.errors import BadManifest, Problem
from adapters_registry.key_limits import NO_LIMITS, KeyLimits
from adapters_registry.names import check_name
from adapters_registry.sources import Provenance, Source
from adapters_registry.states import AdapterState
from adapters_registry.visibility import EVERYTHING, Audience, Sight

MAX_EXAMPLES = 2000
MAX_EXAMPLE_CHARS = 8000
MAX_DESCRIPTION_CHARS = 4000
MAX_CARD_ITEMS = 64
MAX_CARD_ITEM_CHARS = 64
MAX_GATE_SAMPLES = 200


def utc_now() -> datetime:
    """Return the current time, timezone-aware, in UTC."""
    return datetime.now(UTC)


# -- what callers send --------------------------------------------------------------------------------------------


def _without_nul(text: str) -> str:
    if "\0" in text:  # PostgreSQL cannot store NUL, and no prompt needs it
        raise ValueError("must not contain the NUL character")
    return text


def _valid_name(name: str) -> str:
    if (problem := check_name(name)) is not None:
        raise ValueError(f"{problem.what}. {problem.fix}")
    return name


Tag = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CARD_ITEM_CHARS), AfterValidator(_without_nul)]
_Words = Annotated[list[Tag], Field(max_length=MAX_CARD_ITEMS)]
_Line = Annotated[str, StringConstraints(max_length=200), AfterValidator(_without_nul)]
_Example = Annotated[str, StringConstraints(min_length=1, max_length=MAX_EXAMPLE_CHARS), AfterValidator(_without_nul)]
_Examples = Annotated[list[_Example], Field(max_length=MAX_EXAMPLES)]


Tenant = Annotated[str, StringConstraints(max_length=MAX_CARD_ITEM_CHARS), AfterValidator(_without_nul)]
"""Name of a tenant; empty means none."""


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
    """What an expert is for, in words: shown to people and read by some routers.

    Keys can be confined by `tags` and `tenant`. A version whose card names no tenant inherits the tenant of the version
    before it; an empty tenant makes it visible to all.
    """

    description: Annotated[str, StringConstraints(max_length=MAX_DESCRIPTION_CHARS), AfterValidator(_without_nul)] = ""
    tags: _Words = Field(default_factory=list)
    tasks: _Words = Field(default_factory=list)
    languages: _Words = Field(default_factory=list)
    license: _Line = ""
    owner: _Line = ""
    tenant: Tenant | None = None
    composed_from: Composition | None = None
    obtained_from: Provenance | None = None


class GateSample(_Strict):
    """A prompt with its expected answer."""

    prompt: _Example
    answer: _Example


class QualityGate(_Strict):
    """The mean score that a version must reach on samples, by a named metric, before it is offered."""

    samples: Annotated[list[GateSample], Field(min_length=1, max_length=MAX_GATE_SAMPLES)]
    min_score: Annotated[float, Field(ge=0, le=1)]
    metric: _Line = "exact_match"
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 128


class Publication(_Strict):
    """What happens to a version once its probes have passed.

    ``active``: the version replaces the name's active version. ``canary``: the version gets `share` of the name's
    conversations; with a share of 0 it takes part in shadow decisions only. ``ready``: the version waits for promotion.
    """

    to: Literal["active", "canary", "ready"] = "active"
    share: Annotated[float, Field(ge=0, le=1)] = 0.1
    gate: QualityGate | None = None


AT_ONCE = Publication()


class Manifest(_Strict):
    """A registration: the expert's name, the source of its files, its card, example prompts, and its publication."""

    name: Annotated[str, AfterValidator(_valid_name)]
    source: Source | None = None
    card: Card = Field(default_factory=Card)
    examples: _Examples = Field(default_factory=list)
    publish: Publication = AT_ONCE


_EXAMPLES: TypeAdapter[list[str]] = TypeAdapter(_Examples, config=ConfigDict(strict=True))


def parse_manifest(raw: bytes | str | Mapping[str, Any]) -> Manifest:
    """Parse a manifest from JSON text or parsed JSON. Raises BadManifest with every problem."""
    try:
        if isinstance(raw, (bytes, str)):
            return Manifest.model_validate_json(raw)
        return Manifest.model_validate(dict(raw))
    except ValidationError as error:
        raise BadManifest(_problems(error, "manifest")) from None


def parse_examples(raw: Any) -> tuple[str, ...]:
    """Validate example prompts alone. Raises BadManifest with every problem."""
    try:
        return tuple(_EXAMPLES.validate_python(raw))
    except ValidationError as error:
        raise BadManifest(_problems(error, "examples")) from None


def _problems(error: ValidationError, root: str) -> list[Problem]:
    """Convert pydantic's findings to problems; the input itself is not repeated."""
    found = []
    for detail in error.errors(include_input=False, include_url=False):
        where = ".".join(ascii(part)[1:-1] if isinstance(part, str) else str(part) for part in detail["loc"])
        known = ", ".join(Manifest.model_fields)
        fix = f"Known fields are {known}." if detail["type"] == "extra_forbidden" else "Correct it and send it again."
        found.append(Problem(where or root, detail["msg"], fix))
    return found


# -- what the registry keeps --------------------------------------------------------------------------------------


class NearestExpert(BaseModel):
    """The other expert whose answers are nearest to a probed version's, and the distance in nats."""

    model_config = ConfigDict(frozen=True)

    expert: str
    distance: float


class ProbeReport(BaseModel):
    """What the probes of a version found.

    A figure is None if it was not measured or is not finite. `server.experts.probes` defines the figures.

    Attributes:
        at: Time at which the probes ended.
        problems: Why the version may not be offered; empty if it may.
        skipped: Why the engine could not be asked in the way that probes need.
        num_prompts: Number of prompts that the engine read.
        load_s: Time to the first answer, in seconds, with which the engine loads the adapter.
        size_bytes: Size of the weights' file.
        noise: Distance of the base to itself, in nats.
        base_distance: Distance of the version to the base, in nats.
        repeat_distance: Distance of the version to itself, in nats.
        nearest_other: The nearest of the other experts that were asked.
        score: Mean score on the samples of the manifest's quality gate, in [0, 1].
    """

    model_config = ConfigDict(frozen=True)

    at: datetime
    skipped: str | None = None
    num_prompts: int | None = None
    load_s: float | None = None
    size_bytes: int | None = None
    noise: float | None = None
    base_distance: float | None = None
    repeat_distance: float | None = None
    nearest_other: NearestExpert | None = None
    score: float | None = None
    problems: tuple[Problem, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether the version may be offered."""
        return not self.problems

    @field_serializer("at")
    def _at(self, at: datetime) -> str:
        return at.isoformat()

    def as_json(self) -> dict[str, Any]:
        """As the store keeps it and the admin API shows it; reads back with ``model_validate``."""
        return self.model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One version of an expert. The content is immutable; state, share, report, card and examples may change.

    Attributes:
        version: First 8 hex digits of `sha256`.
        sha256: Content hash of normalised config and weights; names the folder in the store.
        rank: Largest rank of any module.
        alpha: `lora_alpha` of the config.
        target_modules: Short names of the adapted modules, sorted, such as ``("k_proj", "q_proj")``.
        size_bytes: Size of the weights' file.
        base_model: The base that the adapter's config names; may be empty.
        publish: What happens once the version is ready.
        share: A canary's share of the name's conversations.
        report: What the probes found, if they ran.
        is_purged: Whether the files were removed.
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
    publish: Publication = AT_ONCE
    share: float | None = None
    report: ProbeReport | None = None
    is_purged: bool = False

    @property
    def expert_id(self) -> str:
        """`name@sha8`, as callers, routers and recipes name this version."""
        return f"{self.name}@{self.version}"

    @property
    def audience(self) -> Audience:
        """Who may use this version, by its card."""
        return Audience(frozenset(self.card.tags), self.card.tenant or "")


@dataclass(frozen=True, slots=True)
class Change:
    """Who changes something, and why."""

    actor: str = ""
    reason: str = ""


NOBODY = Change()


@dataclass(frozen=True, slots=True)
class Transition:
    """A step in a version's life, as a caller asks for it.

    Attributes:
        state: The state to reach.
        expected: The state that the version must be in, so that of several concurrent callers only one succeeds.
        share: A canary's share of the name's traffic, in (0, 1].
        report: What the probes found.
        through: States on the way; the whole way is taken in one transaction, or none of it.
    """

    state: AdapterState
    expected: AdapterState | None = None
    share: float | None = None
    report: ProbeReport | None = None
    through: Sequence[AdapterState] = ()


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One recorded change, numbered in order; for experts with the states before and after."""

    number: int
    at: datetime
    actor: str
    action: str
    subject: str
    from_state: str | None
    to_state: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class LibraryChanges:
    """What has changed since an earlier read.

    Attributes:
        revision: The library's revision at the moment of reading.
        number: Number of the newest change (`AuditEntry.number`), 0 before the first; pass it to the next read.
        records: All requested versions if `is_whole`; else the changed versions, in their present state.
        is_whole: Whether the reader must forget everything it knew before, including keys.
        keys: Ids of the changed keys, unless `is_whole`.
    """

    revision: int
    number: int
    records: tuple[AdapterRecord, ...]
    is_whole: bool
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key without its secret.

    Attributes:
        hash: SHA-256 of the whole key, in hex.
        scopes: What the key may do, such as ``infer`` and ``admin``.
        sight: Which experts and policies the key may use.
        limits: How much the key may use.
    """

    key_id: str
    name: str
    hash: str
    scopes: frozenset[str]
    created_at: datetime
    revoked_at: datetime | None = None
    expires_at: datetime | None = None
    sight: Sight = EVERYTHING
    limits: KeyLimits = NO_LIMITS

    def is_usable(self, now: datetime | None = None) -> bool:
        """Return whether the key is neither revoked nor expired."""
        moment = now or utc_now()
        return self.revoked_at is None and (self.expires_at is None or moment < self.expires_at)
