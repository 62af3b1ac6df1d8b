from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.cli.bulk import Item, find_items, import_all
from server.cli.client import ClientError


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def make(folder: Path, name: str, **files: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_config.json").write_text("{}")
    for file, content in files.items():
        (folder / name / file.replace("__", ".")).write_text(content)
    return folder / name


def test_a_folder_of_adapters(tmp_path: Path) -> None:
    plain = make(tmp_path, "plain")
    make(tmp_path, "told", manifest__json='{"name": "other", "card": {"tags": ["x"]}, "source": {"path": "/etc"}}')
    make(tmp_path, "yaml", manifest__yaml="card: {description: d}", examples__txt="one\ntwo\n")
    (tmp_path / "packed.tar.gz").write_bytes(b"")
    (tmp_path / "notes.md").write_text("not an adapter")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter_model.safetensors").write_bytes(b"")
    items = {item.manifest["name"]: item for item in find_items(tmp_path, lines)}
    assert items.keys() == {"plain", "other", "yaml", "packed", "half"}  # the gateway says what is missing of a half
    assert items["plain"] == Item({"name": "plain"}, plain)
    assert items["other"].manifest == {"name": "other", "card": {"tags": ["x"]}}
    assert items["yaml"].manifest == {"name": "yaml", "card": {"description": "d"}, "examples": ["one", "two"]}


def test_a_list_of_manifests(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"name": "a", "source": {"path": "x/a"}, "examples": ["e"]}]))
    (tmp_path / "list.yaml").write_text("- {name: a, source: {path: x/a}, examples: [e]}")
    for file in ("list.json", "list.yaml"):
        assert find_items(tmp_path / file, lines) == [Item({"name": "a", "examples": ["e"]}, tmp_path / "x/a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no adapters"),
        ("[1]", "objects"),
        ("{", "cannot be read"),
        ('[{"name": "a"}]', "source.path"),
        ('[{"name": "a", "source": {"path": "x"}}, {"name": "a", "source": {"path": "y"}}]', "more than one"),
        ('[{"name": "A B", "source": {"path": "x"}}]', "cannot be an expert's name"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ClientError, match=message):
        find_items(tmp_path / "list.json", lines)


def test_python_in_yaml_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("!!python/object/apply:os.mkdir ['/tmp/from-yaml']")
    with pytest.raises(ClientError, match="cannot be read"):
        find_items(tmp_path / "list.yaml", lines)


def test_outcomes() -> None:
    before = {
        "same": {"id": "same@1", "updated_at": "t"},
        "told": {"id": "told@1", "updated_at": "t"},
        "changed": {"id": "changed@1", "updated_at": "t"},
    }

    def register(manifest: dict[str, Any], place: Path) -> dict[str, Any]:
        name = manifest["name"]
        if name == "bad":
            raise ClientError("use_dora is not supported", 1)
        version = {"same": "1", "told": "1"}.get(name, "2")
        return {"id": f"{name}@{version}", "updated_at": "t" if name == "same" else "later"}

    items = [Item({"name": name}, Path(name)) for name in ("same", "told", "changed", "new", "bad")]
    seen: list[tuple[int, int]] = []
    outcomes = import_all(items, before, register, 3, lambda done, total: seen.append((done, total)))
    assert [outcome.result for outcome in outcomes] == ["unchanged", "described anew", "new version", "new", "refused"]
    assert outcomes[-1].detail == "use_dora is not supported"
    assert seen == [(number, 5) for number in range(6)]
