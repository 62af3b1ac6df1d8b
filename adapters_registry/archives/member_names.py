"""Names inside archives: which are refused, and how the others become paths below one folder.

A member's name is untrusted text. It is accepted only if every reader, on every file system, understands it as the same
plain relative path.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from adapters_registry.errors import Problem, quote

_MAX_PART_BYTES = 200
_MAX_DEPTH = 8
_DRIVE = re.compile(r"[A-Za-z]:")
_LITTER = frozenset({"__MACOSX", ".DS_Store"})
_FIX = "Pack the adapter's files again with plain relative names."


@dataclass(frozen=True, slots=True)
class Member:
    """One entry as the archive declares it."""

    name: str
    is_folder: bool
    size_bytes: int


def is_litter(name: str) -> bool:
    """Return whether an entry is a file manager's leftover, which is skipped."""
    parts = name.split("/")
    return not _LITTER.isdisjoint(parts) or parts[-1].startswith("._")


def plan_paths(members: Sequence[Member]) -> tuple[list[PurePosixPath], list[Problem]]:
    """Return each member's path below the target folder, in order, without a common top folder."""
    problems = [problem for member in members if (problem := _check_name(member.name)) is not None]
    if problems:
        return [], problems
    paths = [PurePosixPath(member.name) for member in members]  # PurePosixPath drops "./" and a final "/"
    problems = _collisions(members, paths)
    if problems:
        return [], problems
    tops = {path.parts[0] for path in paths if path.parts}
    has_file_on_top = any(
        len(path.parts) == 1 and not member.is_folder for member, path in zip(members, paths, strict=True)
    )
    if len(tops) == 1 and not has_file_on_top:
        paths = [PurePosixPath(*path.parts[1:]) for path in paths]
    return paths, []


def _check_name(name: str) -> Problem | None:
    def refuse(what: str) -> Problem:
        return Problem(quote(name), what, _FIX)

    parts = name.split("/")
    if not name or name.startswith("/"):
        return refuse("is an absolute path or empty")
    if "\\" in name or _DRIVE.match(name):
        return refuse("is a path of another operating system (backslash or drive letter)")
    if ".." in parts:
        return refuse("leads out of the archive with '..'")
    if any(unicodedata.category(character)[0] in "CZ" and character != " " for character in name):
        return refuse("contains control, invisible or undecodable characters")
    if len(parts) > _MAX_DEPTH or any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return refuse("is too deep or too long")
    return None


def _collisions(members: Sequence[Member], paths: Sequence[PurePosixPath]) -> list[Problem]:
    """Find names that some file system treats as equal, and files that are also used as folders."""
    problems = []
    seen: dict[str, bool] = {}
    for member, path in zip(members, paths, strict=True):
        key = _fold(path)
        if key in seen and not (member.is_folder and seen[key]):
            problems.append(Problem(quote(member.name), "is a duplicate (ignoring case and Unicode form)", _FIX))
        seen[key] = member.is_folder
    for member, path in zip(members, paths, strict=True):
        if any(seen.get(_fold(parent)) is False for parent in path.parents if parent.parts):
            problems.append(Problem(quote(member.name), "is below a file", _FIX))
    return problems


def _fold(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", str(path)).casefold())
