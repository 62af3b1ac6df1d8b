"""Artefacts on disk: written whole or not at all, checked when read, replaced by one rename.

    <root>/<policy>/<library_version[:16]>-<n>/artefact.safetensors     the arrays
                                               artefact.json            format, provenance, checksum, data
    <root>/<policy>/current                                             name of the version in use

A version folder never changes once it exists. Only safetensors and JSON are read, nothing executable.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from adapters_registry.disk.safe_files import flush, fsync_path, replace_file
from routers.base import Artefact
from routers.errors import BadArtefact

FORMAT = 1
_ARRAYS, _FACTS, CURRENT = "artefact.safetensors", "artefact.json", "current"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def save_artefact(artefact: Artefact, folder: Path) -> None:
    """Write `folder`, which must not exist, as a whole; an OSError leaves nothing behind."""
    arrays = save_arrays({name: np.ascontiguousarray(array) for name, array in artefact.arrays.items()})
    facts = {
        "format": FORMAT,
        "router": artefact.router,
        "library_version": artefact.library_version,
        "embedder": artefact.embedder,
        "code_version": code_version(),
        "arrays_sha256": hashlib.sha256(arrays).hexdigest(),
        "data": dict(artefact.data),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    try:
        _write(temporary / _ARRAYS, arrays)
        _write(temporary / _FACTS, json.dumps(facts, allow_nan=False, ensure_ascii=True).encode())
        fsync_path(temporary)
        if folder.exists():
            raise FileExistsError(f"{folder} exists, and an artefact is never overwritten")
        temporary.rename(folder)
        fsync_path(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_artefact(folder: Path) -> Artefact:
    """Read what `save_artefact` wrote; raises `BadArtefact` if anything is missing, damaged or of another format."""
    try:
        facts = json.loads((folder / _FACTS).read_bytes())
        arrays = (folder / _ARRAYS).read_bytes()
    except (OSError, ValueError) as error:
        raise BadArtefact(f"the artefact in {folder} cannot be read: {error}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise BadArtefact(f"the artefact in {folder} does not have format {FORMAT}; fit the policy again")
    if hashlib.sha256(arrays).hexdigest() != facts.get("arrays_sha256"):
        raise BadArtefact(f"the arrays of the artefact in {folder} do not match their checksum")
    try:
        return Artefact(
            router=_text(facts["router"]),
            arrays=load_arrays(arrays),
            data=dict(facts["data"]),
            library_version=_text(facts["library_version"]),
            embedder=_text(facts["embedder"]),
        )
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise BadArtefact(f"the artefact in {folder} is damaged: {error!r}") from error


class ArtefactStore:
    """The artefacts of all policies in one folder; safe for any number of readers and one writer per policy."""

    def __init__(self, root: Path, *, num_kept: int = 3) -> None:
        """Keep `num_kept` versions of each policy, including the current one."""
        self._root = root
        self._num_kept = max(1, num_kept)

    def publish(self, policy: str, artefact: Artefact) -> Path:
        """Store a new version and make it current; readers see either the old or the new one as a whole."""
        home = self._home(policy)
        home.mkdir(parents=True, exist_ok=True)
        number = 1 + max((_number(folder) for folder in self._versions(home)), default=0)
        folder = home / f"{_stem(artefact.library_version)}-{number}"
        save_artefact(artefact, folder)
        replace_file(home / CURRENT, folder.name.encode())
        self._prune(home, keep=folder)
        return folder

    def may_be_of(self, policy: str, library_version: str) -> bool:
        """Return whether the name of the artefact in use matches this version; does not read the artefact."""
        try:
            name = (self._home(policy) / CURRENT).read_bytes().decode("utf-8", "replace")
        except OSError:
            return False
        return name.rpartition("-")[0] == _stem(library_version)

    def current(self, policy: str) -> Artefact | None:
        """Return the artefact in use, or None; raises `BadArtefact` if it is damaged (the caller refits)."""
        pointer = self._home(policy) / CURRENT
        try:
            name = pointer.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadArtefact(f"{pointer} cannot be read: {error}") from error
        if not _NAME.fullmatch(name):
            raise BadArtefact(f"{pointer} does not name a version")
        return load_artefact(pointer.parent / name)

    def _home(self, policy: str) -> Path:
        if not _NAME.fullmatch(policy):
            raise ValueError(f"{policy!r} is not a policy name: up to 100 letters, digits, '.', '_' and '-'")
        return self._root / policy

    def _versions(self, home: Path) -> list[Path]:
        """Return the version folders, oldest first."""
        return sorted((p for p in home.iterdir() if p.is_dir() and _number(p)), key=_number)

    def _prune(self, home: Path, keep: Path) -> None:
        for folder in self._versions(home)[: -self._num_kept]:
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)


def code_version() -> str:
    """Return the version of this distribution, which artefacts record."""
    try:
        return version("moergate")
    except PackageNotFoundError:
        return "unknown"


def _number(folder: Path) -> int:
    stem, _, number = folder.name.rpartition("-")
    return int(number) if stem and not stem.startswith(".") and number.isascii() and number.isdigit() else 0


def _stem(library_version: str) -> str:
    return _safe(library_version[:16])


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]", "_", text).lstrip("._") or "0"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {type(value).__name__}")
    return value


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        flush(file)


@contextmanager
def reading(artefact: Artefact, router: str) -> Iterator[None]:
    """Report whatever is missing or invalid in an artefact of `router` as `BadArtefact`."""
    if artefact.router != router:
        raise BadArtefact(f"this artefact belongs to router {artefact.router!r}, not to {router!r}")
    try:
        yield
    except KeyError as error:
        raise BadArtefact(f"the {router} artefact lacks {error}") from error
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadArtefact(f"the {router} artefact is invalid: {error}") from error
