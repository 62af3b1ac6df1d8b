"""The documentation says what is: reference pages are in step with the code, links lead somewhere, examples run."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

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
        if path.name not in ("console", "demo_library") and (
            is_folder or (path.suffix == ".py" and path.name != "__init__.py")
        ):
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


def test_commands_in_pages_are_accepted() -> None:
    """Every ``moergate`` command in a page names a command that exists, with options that it has."""
    serve = set(re.findall(r"--[a-z-]+", (ROOT / "docs/reference/settings.md").read_text("utf-8"))) | {
        "--config",
        "--demo",
    }
    known = {"moergate serve": serve}
    for section in (ROOT / "docs/reference/commands.md").read_text("utf-8").split("\n## `")[1:]:
        name, text = section.split("`", 1)
        known.setdefault(name, set(re.findall(r"--[a-z-]+|(?<=`)-[a-z](?=,)", text)))
    num_commands = 0
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in re.findall(r"^(?:\.venv/bin/)?moergate .+$", block.replace("\\\n", " "), re.MULTILINE):
                words = shlex.split(line.partition(" | ")[0], comments=True)
                command = max(
                    (
                        name
                        for name in (*known, "moergate decisions")
                        if ["moergate", *words[1:]][: len(name.split())] == name.split()
                    ),
                    key=len,
                    default="",
                )
                assert command, f"{page.name}: no such command: {line}"
                flags = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
                assert flags <= known.get(command, set()), f"{page.name}: {flags} in: {line}"
                num_commands += 1
    assert num_commands >= 50


def test_prose_wraps_at_120_columns() -> None:
    """Rows of tables, code, and what cannot be broken (a code span, a link) may be longer."""
    for page in PAGES:
        text = page.read_text("utf-8")
        if text.startswith("<!-- Written by"):
            continue
        for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
            if len(line) > 120 and not line.startswith(("|", "![", "#")):
                assert len(re.sub(r"`[^`]*`|\]\([^)]*\)", "", line).split()) < 2, f"{page.name}: {line}"


def test_decisions_have_one_form_and_are_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "index.md").read_text("utf-8")
    for page in sorted(folder.glob("0*.md")):
        headings = re.findall(r"^#+ .*", page.read_text("utf-8"), re.MULTILINE)
        assert headings[0].startswith(f"# {page.name[:4]}: "), f"{page.name} begins with {headings[0]}"
        assert headings[1:] == ["## Context", "## Decision", "## Consequences"], page.name
        title = headings[0].partition(": ")[2]
        assert f"| [{page.name[:4]}]({page.name}) | {title} |" in index, f"{page.name} is missing in index.md"


def test_make_help_lists_the_targets() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"serve", "test", "bench-gateway"} <= {line.split()[0] for line in shown.splitlines()}


def first_block(page: str, language: str) -> str:
    """The first code block of a page in a language."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), re.DOTALL)
    return str(blocks[0])


@pytest.mark.parametrize(
    ("page", "name", "options"),
    [
        ("tutorial/first-router.md", "NearestExampleRouter", {"threshold": 0.3}),
        ("how-to/write-a-router.md", "NearestMeanRouter", {}),
    ],
)
def test_the_routers_of_the_pages_are_routers(page: str, name: str, options: dict[str, float]) -> None:
    import numpy as np

    from routers.base import FitData, LibraryExpert, RouteQuery, no_progress

    namespace: dict[str, object] = {"__name__": "example"}
    exec(first_block(page, "python"), namespace)  # noqa: S102
    kind: Any = namespace[name]
    rows = np.eye(4, dtype=np.float32)
    experts = tuple(LibraryExpert(f"e{i}@{i:08x}", examples=("x",)) for i in range(4))
    data = FitData(experts, {e.expert_id: rows[i : i + 1] for i, e in enumerate(experts)}, "test", "v")
    config = kind.config_class(**options)
    router = kind.load(config, kind.fit(config, data, no_progress))
    assert router.route(RouteQuery("q", rows[2])).experts[0].expert_id == experts[2].expert_id
    assert router.route(RouteQuery("q", rows[2], frozenset({experts[1].expert_id}))).abstained


def test_the_tutorials_router_is_short_and_keeps_the_contract(tmp_path: Path) -> None:
    code = first_block("tutorial/first-router.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 35
    entry_points = tomllib.loads(first_block("tutorial/first-router.md", "toml"))["project"]["entry-points"]
    (tmp_path / "nearest_example.py").write_text(code, "utf-8")
    (tmp_path / "my_router-0.1.dist-info").mkdir()
    (tmp_path / "my_router-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-router\nVersion: 0.1\n"
    )
    (tmp_path / "my_router-0.1.dist-info" / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in targets.items())
            for group, targets in entry_points.items()
        )
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    shown = run_cli("policies", "methods", "nearest_example", env={"PYTHONPATH": path})
    assert "Nearest example" in shown.stdout, shown.stderr
    contract = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "nearest_example"]
    contract.append("tests/contract/test_router_contract.py")
    done = subprocess.run(contract, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout


def test_the_site_builds_without_a_broken_link_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 50
    loads = re.compile(r"""<(?:script|link|img)[^>]*\s(?:src|href)=["']?(https?://[^"'\s>]+)""")
    for page in pages:
        assert not loads.findall(page.read_text("utf-8")), page
