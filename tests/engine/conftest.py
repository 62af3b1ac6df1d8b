"""One gateway with a real vLLM and the demo library, started by the command as a user would, for all tests here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Serving, free_port, serving

LIBRARY = Path(__file__).parents[2] / "server" / "demo_library"


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """``moergate serve`` with the demo library, ready; with fewer slots than experts, so that they take turns."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    home = tmp_path_factory.mktemp("engine") / "home"
    arguments = ("--library", str(LIBRARY / "library.json"), "--max-loras", "6", "--max-lora-rank", "16")
    with serving(home, free_port(), *arguments, "--max-model-len", "1024", "--kv-cache-gib", "1") as process:
        process.wait_ready()
        yield process
