"""Writes a release's SBOM (CycloneDX JSON): the dependencies that the distribution declares, at the tested versions.

    python deploy/sbom.py pyproject.toml constraints.txt dist/sbom.cdx.json

The extras `dev` and `docs` are left out: they build the project, and nothing that is served imports them. A dependency
without an exact version in either file has none in the SBOM, only its declared bounds. Reads no network and no
installed packages; the same input and SOURCE_DATE_EPOCH give the same bytes.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEFT_OUT = frozenset({"dev", "docs"})


def pinned_versions(constraints: str) -> dict[str, str]:
    """Return the exact versions in a constraints file, by canonical name."""
    lines = (line.partition("#")[0].strip() for line in constraints.splitlines())
    return dict(filter(None, (_pin(Requirement(line)) for line in lines if line)))


def bill_of_materials(pyproject: str, constraints: str, epoch: int) -> Bom:
    """Return the SBOM of the project that `pyproject` describes.

    Args:
        pyproject: Text of pyproject.toml.
        constraints: Text of constraints.txt.
        epoch: Time of the release, in seconds since 1970.
    """
    project = tomllib.loads(pyproject)["project"]
    by_extra = {"": project["dependencies"], **project["optional-dependencies"]}
    declared: dict[str, list[tuple[str, Requirement]]] = defaultdict(list)
    for extra, lines in by_extra.items():
        if extra not in LEFT_OUT:
            for requirement in map(Requirement, lines):
                declared[canonicalize_name(requirement.name)].append((extra, requirement))

    pins = pinned_versions(constraints)
    root = _component(project["name"], project["version"], type=ComponentType.APPLICATION)
    parts = [_dependency(name, uses, pins.get(name)) for name, uses in sorted(declared.items())]
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"{root.purl} {epoch}"),
        metadata=BomMetaData(component=root, timestamp=datetime.fromtimestamp(epoch, UTC)),
        components=parts,
    )
    bom.register_dependency(root, parts)
    return bom


def _pin(requirement: Requirement) -> tuple[str, str] | None:
    for bound in requirement.specifier:
        if bound.operator == "==":
            return canonicalize_name(requirement.name), bound.version
    return None


def _dependency(name: str, uses: list[tuple[str, Requirement]], pinned: str | None) -> Component:
    extras = sorted({extra for extra, _ in uses})
    own_pin = next((pin[1] for _, requirement in uses if (pin := _pin(requirement))), None)
    return _component(
        name,
        own_pin or pinned,
        scope=ComponentScope.REQUIRED if "" in extras else ComponentScope.OPTIONAL,
        properties=[
            *(Property(name="moergate:declared", value=text) for text in sorted({str(each) for _, each in uses})),
            *(Property(name="moergate:extra", value=extra) for extra in extras if extra),
        ],
    )


def _component(
    name: str,
    version: str | None,
    type: ComponentType = ComponentType.LIBRARY,
    scope: ComponentScope | None = None,
    properties: list[Property] | None = None,
) -> Component:
    purl = PackageURL("pypi", name=name, version=version)
    return Component(
        name=name, version=version, type=type, scope=scope, properties=properties, purl=purl, bom_ref=str(purl)
    )


def main(pyproject: str, constraints: str, target: str) -> None:
    """Write the SBOM to `target`."""
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    bom = bill_of_materials(Path(pyproject).read_text("utf-8"), Path(constraints).read_text("utf-8"), epoch)
    outputter = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    Path(target).write_text(outputter.output_as_string(indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
