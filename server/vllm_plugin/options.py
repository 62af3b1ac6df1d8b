"""The plugin's options: every environment variable that the plugin reads or sets.

The gateway sets the variables for an engine that it starts; an operator sets them for an engine that runs elsewhere.
vLLM starts further processes, which inherit the variables, so every process reads its options here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ADAPTERS_DIR = "MOERGATE_ADAPTERS_DIR"
EXPERT_SLOTS = "MOERGATE_EXPERT_SLOTS"
MAX_SLOT_WAIT_S = "MOERGATE_MAX_SLOT_WAIT_S"
FORK_ENGINE = "MOERGATE_FORK_ENGINE"
STATS_FILE = "MOERGATE_STATS_FILE"


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """What the environment says about the plugin.

    Attributes:
        adapters_dir: Root of the library's store; None leaves vLLM unchanged.
        expert_slots: Experts that can be resident; None takes vLLM's own limit.
        max_slot_wait_s: Seconds after which a waiting request gets the next free slots.
        fork_engine: Whether the engine core is forked on a CPU instead of spawned.
        stats_file: File through which the worker reports its figures to the API server; None before the API server
            has chosen it.
    """

    adapters_dir: Path | None
    expert_slots: int | None
    max_slot_wait_s: float
    fork_engine: bool
    stats_file: Path | None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the options.

        Args:
            environ: The variables; None reads the environment of the process.

        Raises:
            ValueError: A number is malformed.
        """
        environ = os.environ if environ is None else environ
        return cls(
            adapters_dir=_path(environ, ADAPTERS_DIR),
            expert_slots=int(environ[EXPERT_SLOTS]) if EXPERT_SLOTS in environ else None,
            max_slot_wait_s=float(environ.get(MAX_SLOT_WAIT_S, "2")),
            fork_engine=environ.get(FORK_ENGINE) == "1",
            stats_file=_path(environ, STATS_FILE),
        )

    def num_slots(self, default: int) -> int:
        """Experts that can be resident, or `default` if the environment sets no number."""
        return default if self.expert_slots is None else self.expert_slots


def share_stats_file(path: Path) -> None:
    """Let the processes that this one starts report their figures through a file."""
    os.environ[STATS_FILE] = str(path)


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    return Path(environ[name]) if environ.get(name) else None
