"""The plugin imports only three modules of ours, so that vLLM's processes load nothing of the gateway.

The linter can forbid imports, but it cannot allow a few and forbid the rest.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import server.vllm_plugin

ALLOWED = ("server.vllm_plugin", "server.engine.recipes", "adapters_registry.disk.layout", "routers.gates")
OURS = ("server", "routers", "adapters_registry")
FOLDER = Path(server.vllm_plugin.__file__).parent
MODULES = sorted(FOLDER.rglob("*.py"))


def _imports(code: str) -> Iterator[str]:
    """Every imported module or name, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_below(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _refused(code: str) -> list[str]:
    return [name for name in _imports(code) if _is_below(name, OURS) and not _is_below(name, ALLOWED)]


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(FOLDER)) for path in MODULES])
def test_a_module_of_the_plugin_imports_only_what_is_allowed(path: Path) -> None:
    assert _refused(path.read_text("utf-8")) == []


def test_every_way_to_import_is_seen() -> None:
    code = """
import os, server.settings
from server.engine import pool, recipes
from adapters_registry.disk.layout import SHA256
import routers.gates.base
if TYPE_CHECKING:
    from routers import base
def later():
    import adapters_registry
    from server.engine.recipes_of_others import parse
"""
    assert _refused(code) == [
        "server.settings",
        "server.engine.pool",
        "routers.base",
        "adapters_registry",
        "server.engine.recipes_of_others.parse",
    ]
