"""What a report says of the machine, the versions and the command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.procfs import cpu_model_of

REPOSITORY = Path(__file__).resolve().parents[2]


def machine_facts() -> dict[str, str]:
    """Date, machine, Python and commit, as name and value."""
    cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{cpu_model_of(cpuinfo)}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "Python": platform.python_version(),
        "commit": f"`{commit.stdout.strip() or 'unknown'}`" + (" with changes" if changed.stdout.strip() else ""),
    }


def shown_command(script: str, arguments: Sequence[str], hidden: Sequence[str] = ("--out",)) -> str:
    """The command for the report, without options that hold the report's own place or a secret."""
    shown = ["python", f"loadtests/{script}"]
    rest = iter(arguments)
    for argument in rest:
        if argument in hidden:
            next(rest, None)
        elif not argument.startswith(tuple(f"{option}=" for option in hidden)):
            shown.append(argument)
    return shlex.join(shown)
