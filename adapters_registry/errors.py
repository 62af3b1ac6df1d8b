"""Errors of the registry.

RegistryError                 .message: one text for people
├── BadInput                  .problems: everything that is wrong, each with a fix
│   ├── InvalidAdapter        the adapter's files cannot be served on this base
│   ├── BadManifest           name, card or examples are not acceptable
│   ├── BadArchive            the archive is damaged or hostile
│   ├── BadSource             the given source of the files cannot be used
│   └── BadBaseModel          the base model's folder cannot be understood
├── AdapterNotFound           nothing offered under this reference (.nearest names)
├── KeyNotFound               no API key with this id
├── NameTaken                 the id is already used for different content
├── NotRetired                only a retired version can be purged
├── WrongState                a version cannot go from its state to the wanted one
├── CannotMerge               these adapters cannot be merged by this method
├── BadBackup                 a backup that cannot be restored
├── NotEmpty                  only an empty library can be restored into
├── StorageFull               no room for the files
├── StorageUnwritable         the store's folder cannot be written
├── DatabaseBusy              locked or unreachable for longer than we wait; a retry can succeed
└── DatabaseBroken            damaged, or not a Moergate database; needs an operator

Every error of the database or the file system leaves this package as one of these. `server.errors` maps them to HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_PROBLEMS = 50
"""Maximum number of problems listed in one error; a broken adapter may have thousands of one kind."""

_MAX_QUOTED_CHARS = 160


def quote(text: object) -> str:
    """Make text from outside safe for a message: escaped, on one line, of bounded length."""
    escaped = ascii(str(text)[: _MAX_QUOTED_CHARS + 1])
    return escaped if len(str(text)) <= _MAX_QUOTED_CHARS else escaped[:_MAX_QUOTED_CHARS] + "…'"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it is, what it is, and what the caller can do about it."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.fix}"


class RegistryError(Exception):
    """Root of this package's errors; `message` says what is wrong and, where possible, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadInput(RegistryError):
    """A caller's input is not acceptable. `problems` holds at most `MAX_PROBLEMS`, then a count of the rest."""

    title = "The input is not acceptable"

    def __init__(self, problems: Sequence[Problem]) -> None:
        unique = tuple(dict.fromkeys(problems))
        if len(unique) > MAX_PROBLEMS:
            rest = Problem("…", f"{len(unique) - MAX_PROBLEMS} more problems", "Solve the ones above first.")
            unique = (*unique[:MAX_PROBLEMS], rest)
        self.problems: tuple[Problem, ...] = unique
        super().__init__(f"{self.title}. " + " ".join(str(problem) for problem in unique))


class InvalidAdapter(BadInput):
    """The adapter's files cannot be served on this base."""

    title = "The adapter was refused"


class BadManifest(BadInput):
    """Name, card or examples are not acceptable."""

    title = "The manifest was refused"


class BadArchive(BadInput):
    """The archive is damaged, too large or hostile. Nothing was kept."""

    title = "The archive was refused"


class BadSource(BadInput):
    """The source of the files is refused, answers wrongly, or sent something else."""

    title = "The source was refused"


class BadBaseModel(BadInput):
    """The base model's folder cannot be understood."""

    title = "The base model cannot be understood"


class AdapterNotFound(RegistryError):
    """Nothing is offered under this reference. Show the `nearest` names only to callers that may see them."""

    def __init__(self, name: str, nearest: tuple[str, ...] = ()) -> None:
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        super().__init__(f"There is no expert {quote(name)}.{hint}")
        self.name = name
        self.nearest = nearest


class KeyNotFound(RegistryError):
    """There is no API key with this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"There is no API key with the id {quote(key_id)}.")
        self.key_id = key_id


class NameTaken(RegistryError):
    """The id is already used for different content."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{quote(name)} is taken: {why}")
        self.name = name


class NotRetired(RegistryError):
    """Only a retired version can be purged."""

    def __init__(self, expert_id: str) -> None:
        super().__init__(f"{expert_id} is still offered; retire it before its files are purged.")
        self.expert_id = expert_id


class WrongState(RegistryError):
    """A version cannot go from its state to the wanted one; the message says what it can become."""

    def __init__(self, expert_id: str, state: str, wanted: str, possible: Sequence[str]) -> None:
        can = f"it can become {', '.join(sorted(possible))}" if possible else "it stays that"
        super().__init__(f"{expert_id} is {state} and cannot become {wanted}; {can}.")
        self.expert_id = expert_id
        self.state = state


class CannotMerge(RegistryError):
    """Adapters cannot be merged by this method; the message says why and what to do."""


class BadBackup(RegistryError):
    """The backup cannot be restored. The library is unchanged."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The backup cannot be restored: {what}. Nothing was changed; take another backup.")


class NotEmpty(RegistryError):
    """A library with experts or keys cannot be restored into."""

    def __init__(self) -> None:
        super().__init__("The library already has experts or keys. Restore into an empty home and database.")


class StorageFull(RegistryError):
    """No room for the files. `needed_bytes` and `free_bytes` are None where they are unknown."""

    def __init__(self, path: Path, needed_bytes: int | None = None, free_bytes: int | None = None) -> None:
        needed = "" if needed_bytes is None else f" {needed_bytes} bytes are needed."
        free = "" if free_bytes is None else f" {free_bytes} bytes are free."
        super().__init__(f"No room left in {path}.{needed}{free} Free some space or raise the quota, then try again.")
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class StorageUnwritable(RegistryError):
    """The store's folder cannot be written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be written ({reason}). Give the server's user write access, or another home.")
        self.path = path


class DatabaseBusy(RegistryError):
    """Locked or unreachable for longer than we wait; nothing was changed, and trying again later can succeed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The registry's database is busy ({what}). Nothing was changed; try again in a moment.")


class DatabaseBroken(RegistryError):
    """The database is damaged, or was not created by Moergate."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"The registry's database cannot be used ({what}). Restore it from a backup; without one, move the file "
            "away and register the adapters again: their files in the folder adapters/ are not touched by this."
        )
