"""Definitions of policies, and the store of those that were made through the admin API, beside their artefacts.

    <home>/policies/<name>/policy.json      router, options, embedder, subset, and the policy's prompts with answers
    <home>/policies/.<name>.lock            held while the policy is fitted

Gateways that share a home see each other's policies (`PolicyStore.stamp`) and fit each of them once. A definition is
one file, which appears whole or not at all. Policies of the settings have no file.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import orjson
import structlog

from adapters_registry.disk.file_lock import file_lock
from adapters_registry.disk.safe_files import replace_file
from routers.artefacts import CURRENT
from routers.base import Sample
from routers.errors import BadSamples
from routers.library.samples import parse_samples
from server.settings import PolicySettings

_DEFINITION, _SAMPLES = "policy.json", "samples"
_SAMPLES_BESIDE = "samples.jsonl"
"""File of the samples in earlier releases. Read if the definition has no samples; removed when it is written."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """The definition of a policy: everything that its fit depends on, apart from the library and the scores.

    Attributes:
        samples: Prompts with answers, for methods that learn from them.
        origin: Whether the settings define the policy, or the admin API.
    """

    name: str
    settings: PolicySettings
    samples: tuple[Sample, ...] = ()
    origin: Literal["settings", "admin"] = "settings"


class PolicyStore:
    """The stored definitions of policies, under one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def load(self) -> list[PolicySpec]:
        """Read all definitions. A definition that cannot be read is logged and left unchanged."""
        specs = []
        for file in sorted(self._root.glob(f"*/{_DEFINITION}")):
            try:
                specs.append(_read(file))
            except (OSError, ValueError, BadSamples) as error:
                log.error("policy cannot be read", policy=file.parent.name, error=str(error))
        return specs

    def stamp(self) -> dict[str, tuple[int, int]]:
        """Return a value that changes whenever a policy is defined, fitted or removed.

        Maps each name to the time of its definition (0 for a policy of the settings) and of its last fit (0 if there
        was none), in ns.
        """
        folders = [*self._root.glob(f"*/{_DEFINITION}"), *self._root.glob(f"*/{CURRENT}")]
        return {
            file.parent.name: (_written_at(file.with_name(_DEFINITION)), _written_at(file.with_name(CURRENT)))
            for file in folders
        }

    def alone(self, name: str) -> AbstractAsyncContextManager[None]:
        """Lock the fit of a policy against all other processes on this home; raises RegistryError."""
        self._root.mkdir(parents=True, exist_ok=True)
        return file_lock(self._root / f".{name}.lock", exclusive=True)

    def save(self, spec: PolicySpec) -> None:
        """Write or replace a definition; raises OSError and keeps the old definition."""
        home = self._root / spec.name
        home.mkdir(parents=True, exist_ok=True)
        definition = spec.settings.model_dump(mode="json") | {_SAMPLES: [asdict(sample) for sample in spec.samples]}
        replace_file(home / _DEFINITION, orjson.dumps(definition, option=orjson.OPT_INDENT_2))
        (home / _SAMPLES_BESIDE).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a policy with its artefacts."""
        (self._root / name / _DEFINITION).unlink(missing_ok=True)
        shutil.rmtree(self._root / name, ignore_errors=True)


def _read(file: Path) -> PolicySpec:
    """Read the policy of a definition; raises OSError, ValueError, BadSamples."""
    fields = orjson.loads(file.read_bytes())
    rows = fields.pop(_SAMPLES, None) if isinstance(fields, dict) else None
    settings = PolicySettings.model_validate(fields)
    beside = file.with_name(_SAMPLES_BESIDE)
    if isinstance(rows, list):
        lines = [orjson.dumps(row).decode() for row in rows]
    elif rows is not None:
        raise BadSamples(f"{file}: '{_SAMPLES}' is not an array")
    else:
        lines = beside.read_text("utf-8").split("\n") if beside.exists() else []
    samples, bad = parse_samples(lines)
    if bad:
        raise BadSamples(f"samples of {file}: {bad[0]}")
    return PolicySpec(file.parent.name, settings, tuple(samples), "admin")


def _written_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # never written, or just removed
        return 0
