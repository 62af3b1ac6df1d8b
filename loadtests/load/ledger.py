"""What a library must be by what was acknowledged, and what is wrong with the library that is found.

Names are ordered one change after the other. While an order is under way, or its fate is not known, its name may be
either; all other names are certain.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_PROBLEMS = 20
WEIGHTS_FILE = "adapter_model.safetensors"
_CONFIG_FILE = "adapter_config.json"


@dataclass(slots=True)
class _Expected:
    """What one name may be.

    Attributes:
        version: The state that is certain; None is absent.
        earlier: What was certain before, since the name was absent last; None is nothing.
        digests: Of the weights of every version that was ever acknowledged.
        open_digest: Of the weights of the order under way; empty if there is none or it brings no files.
        is_open: Whether an order is under way whose fate is not known.
    """

    version: str | None = None
    earlier: str | None = None
    digests: dict[str, str] = field(default_factory=dict)
    open_digest: str = ""
    is_open: bool = False

    def is_certain(self, version: str | None) -> bool:
        return not self.is_open and self.version == version


class Ledger:
    """Keeps the names of one library; see the module's docstring.

    Attributes:
        problems: What was found wrong, at most `MAX_PROBLEMS`.
        num_carried_out: Orders without an answer that had been carried out.
    """

    def __init__(self) -> None:
        self._names: dict[str, _Expected] = {}
        self.problems: list[str] = []
        self.num_carried_out = 0

    def begin(self, name: str) -> str | None:
        """An order for a name is about to be given; returns the version that it has now."""
        expected = self._names.setdefault(name, _Expected())
        expected.is_open = True
        return expected.version

    def send(self, name: str, weights: bytes) -> None:
        """The order under way brings these weights."""
        self._names[name].open_digest = hashlib.sha256(weights).hexdigest()

    def acknowledge(self, name: str, version: str | None) -> None:
        """The order under way has been carried out, and made this the name's version."""
        expected = self._names[name]
        if version is not None and version not in expected.digests:
            expected.digests[version] = expected.open_digest
        if version is None or version != expected.version:
            expected.earlier = expected.version if version is not None else None
        expected.version, expected.open_digest, expected.is_open = version, "", False

    def settle(self, name: str, version: str | None) -> None:
        """The order under way had no answer, and this is what has become of it: all of it, or nothing."""
        expected = self._names[name]
        if version != expected.version:
            self.num_carried_out += 1
            is_new = version is not None and version not in expected.digests
            if is_new and not expected.open_digest:
                self.note(f"{name} is {version} after an order that would not have made it so")
        self.acknowledge(name, version)

    def has_earlier(self, name: str) -> bool:
        """Whether a name stood for another version before the one it has."""
        return self._names[name].earlier is not None

    def certain(self) -> dict[str, str | None]:
        """The names without an order under way, with their versions."""
        return {name: expected.version for name, expected in self._names.items() if not expected.is_open}

    async def compare(
        self, when: str, before: Mapping[str, str | None], records: Iterable[Mapping[str, Any]], adapters: Path
    ) -> None:
        """Note what is wrong with a library.

        Args:
            when: Part of the problems' texts.
            before: `certain`, as it was before the library was asked. Names with an order since then are left out.
            records: What the library lists.
            adapters: Where it keeps its files, by content.
        """
        found = {record["name"]: record for record in records}
        for name, version in before.items():
            expected = self._names[name]
            if not expected.is_certain(version):
                continue
            listed = found.get(name)
            is_now = listed["version"] if listed else None
            if is_now != version:
                self.note(f"{when}: {name} should be {version}, is {is_now}")
            elif listed is not None:
                problem = await asyncio.to_thread(
                    damage, adapters / listed["sha256"], expected.digests[listed["version"]]
                )
                if problem and expected.is_certain(version):
                    self.note(f"{when}: the files of {name}@{version} {problem}")
        for name in found.keys() - self._names.keys():
            self.note(f"{when}: {name} was never registered")

    def note(self, problem: str) -> None:
        """Keep a problem, if there are not too many already."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def damage(folder: Path, digest: str) -> str:
    """What is wrong with the files of an expert, whose weights must have this digest; empty if nothing is."""
    try:
        if not (folder / _CONFIG_FILE).read_bytes():
            return "have an empty config"
        found = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    except OSError as error:
        return f"cannot be read ({type(error).__name__})"
    return "" if found == digest else "are not what was sent"
