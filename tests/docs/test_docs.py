"""The documentation says what is: reference pages are in step with the code, links lead somewhere, examples run."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from routers.registry import router_names
from tests.support.processes import run_cli

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *ROOT.glob("*/README.md"),
]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs"))  # generate imports its neighbour
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_in_step(generate: ModuleType) -> None:
    for name, page in generate.PAGES.items():
        assert (ROOT / "docs" / name).read_text("utf-8") == page(), f"{name} is out of date; run `make docs`"


@pytest.mark.parametrize("package", ["server", "routers", "adapters_registry"])
def test_the_structure_names_every_folder_and_every_layer(package: str, generate: ModuleType) -> None:
    """A folder has at most 15 modules, unless it is a plain list; every folder and module has a layer."""
    page, structure = generate.PAGES["explanation/structure.md"](), generate.structure
    in_layers = {name for layer in structure.layers(package) for name in layer}
    for folder in [path.parent for path in (ROOT / package).rglob("__init__.py")]:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        name = str(folder.relative_to(ROOT))
        assert len(modules) <= 15 or name in ("routers/methods", "routers/gates", "server/cli"), f"{name} is too full"
    for path in (ROOT / package).iterdir():
        is_folder = (path / "__init__.py").is_file()
        if is_folder:
            assert f"| `{package}/{path.name}/` |" in page
        if path.name != "console" and (is_folder or (path.suffix == ".py" and path.name != "__init__.py")):
            assert path.stem in in_layers, f"{path.name} is in no layer of {package}"


def test_every_router_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "routers.md").read_text("utf-8")
    assert all(f"## `{name}`" in text for name in router_names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_targets_named_in_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for named in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE):
            assert named in targets, f"{page.name} names make {named}"


def test_commands_of_the_readme_are_accepted() -> None:
    text = (ROOT / "README.md").read_text("utf-8").replace("\\\n", " ")
    commands = re.findall(r"^\.venv/bin/moergate (.+)$", text, re.MULTILINE)
    assert len(commands) >= 4
    known = set(re.findall(r"--[a-z-]+", (ROOT / "docs/reference/commands.md").read_text("utf-8")))
    known |= set(re.findall(r"--[a-z-]+", (ROOT / "docs/reference/settings.md").read_text("utf-8")))
    for command in commands:
        words = shlex.split(command)
        flags = {word for word in words if word.startswith("--")}
        assert flags <= known, f"{flags - known} in: {command}"
        names = [word for word in words if not word.startswith("-")][
            : 2 if words[0] in ("adapters", "keys", "policies") else 1
        ]
        assert run_cli(*names, "--help").returncode == 0


def test_make_help_lists_the_targets() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"serve", "test", "bench-gateway"} <= {line.split()[0] for line in shown.splitlines()}


def test_the_routers_example_is_a_router() -> None:
    import numpy as np

    from routers.base import FitData, LibraryExpert, RouteQuery, no_progress

    page = (ROOT / "docs" / "tutorial" / "first-router.md").read_text("utf-8")
    namespace: dict[str, object] = {"__name__": "example"}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], namespace)  # noqa: S102
    kind = namespace["NearestMeanRouter"]
    assert isinstance(kind, type)
    rows = np.eye(4, dtype=np.float32)
    experts = tuple(LibraryExpert(f"e{i}@{i:08x}", examples=("x",)) for i in range(4))
    data = FitData(experts, {e.expert_id: rows[i : i + 1] for i, e in enumerate(experts)}, "test", "v")
    config = kind.config_class()
    router = kind.load(config, kind.fit(config, data, no_progress))
    assert router.route(RouteQuery("q", rows[2])).experts[0].expert_id == experts[2].expert_id
    assert router.route(RouteQuery("q", rows[2], frozenset({experts[1].expert_id}))).abstained


def test_the_site_builds_without_a_broken_link_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 50
    loads = re.compile(r"""<(?:script|link|img)[^>]*\s(?:src|href)=["']?(https?://[^"'\s>]+)""")
    for page in pages:
        assert not loads.findall(page.read_text("utf-8")), page
