"""Builds the wheel from the files that git knows or would add, and installs it apart from the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("examples/", "tests/", "docs/", "loadtests/", "deploy/")


def build_wheel(folder: Path) -> Path:
    """Build the wheel in `folder` without a network; returns its path."""
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if not name.startswith(LEFT_OUT) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(source))
    (built,) = folder.glob("moergate-*.whl")
    return built


def install_wheel(wheel: Path, site: Path) -> None:
    """Install a wheel into the folder `site`, without its dependencies, which the environment has."""
    _pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
