"""One gateway with a real vLLM and the demo library, started by the command as a user would, for all tests here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Serving, serving

PORT = 8765
LIBRARY = Path(__file__).parents[2] / "server" / "demo_library"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """``moergate serve`` with the demo library, ready; with fewer slots than experts, so that they take turns."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    home = tmp_path_factory.mktemp("engine") / "home"
    arguments = ("--library", str(LIBRARY / "library.json"), "--max-loras", "6", "--max-lora-rank", "16")
    with serving(home, PORT, *arguments, "--max-model-len", "1024", "--kv-cache-gib", "1") as process:
        process.wait_ready()
        yield process
