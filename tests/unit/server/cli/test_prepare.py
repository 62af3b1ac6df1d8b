"""``moergate prepare`` provides what a first start needs, and says what it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli", "prepare", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_what_is_prepared_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = prepare("--base-model", str(tmp_path), "--embedder", "hashing")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["base", "model", str(tmp_path), "embedder", "hashing-384"]


def test_a_base_that_is_none_is_refused(tmp_path: Path) -> None:
    refused = prepare("--base-model", str(tmp_path), "--embedder", "hashing")
    assert refused.returncode == 1
    assert "is not a model: it has no config.json" in " ".join(refused.stderr.split())
