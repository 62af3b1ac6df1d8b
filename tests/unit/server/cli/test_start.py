"""The command starts at once: what only some of its commands need is loaded by those."""

from __future__ import annotations

import subprocess
import sys

import pytest

LATER = {"aiohttp", "alembic", "fastapi", "faiss", "numpy", "prometheus_client", "sqlalchemy", "torch", "transformers"}


@pytest.mark.parametrize("arguments", [["--help"], ["adapters", "list", "--help"], ["config", "show"]])
def test_little_is_loaded(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom server.cli import main\n"
        f"sys.argv = {['moergate', *arguments]!r}\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('loaded:', sorted({LATER!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "loaded: []"
