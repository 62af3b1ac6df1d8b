"""``moergate adapters import``: register many adapters in parallel.

Existing adapters stay unchanged, so an interrupted import is simply repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from adapters_registry.disk.layout import CONFIG_FILE
from adapters_registry.names import check_name
from server.cli.client import ClientError

MANIFEST_FILES = ("manifest.json", "manifest.yaml", "manifest.yml")
EXAMPLES_FILES = ("examples.jsonl", "examples.txt")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

Register = Callable[[dict[str, Any], Path], dict[str, Any]]
ReadExamples = Callable[[Path], list[str]]


@dataclass(frozen=True, slots=True)
class Item:
    """One adapter to import: its manifest without a source, and the location of its files."""

    manifest: dict[str, Any]
    place: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one import: ``new``, ``new version``, ``unchanged`` or ``refused``."""

    name: str
    result: str
    detail: str = ""


def find_items(source: Path, read_examples: ReadExamples) -> list[Item]:
    """Find the adapters in a folder, or those that a manifest file lists.

    A folder has one sub-folder or archive per adapter, named like the expert. Beside its two files a sub-folder may
    have ``manifest.json`` (or yaml: card, examples, publish, another name) and ``examples.jsonl`` (or txt). A manifest
    file is a list of manifests, as JSON or YAML, with ``source.path`` relative to the file.

    Raises:
        ClientError: There are no adapters, or a manifest cannot be read.
    """
    if source.is_dir():
        items = [item for entry in sorted(source.iterdir()) if (item := _from_entry(entry, read_examples))]
    else:
        items = [_from_manifest(entry, source, number) for number, entry in enumerate(_read(source), 1)]
    if not items:
        raise ClientError(f"{source} has no adapters: no sub-folder with {CONFIG_FILE}, no archive.", 2)
    names = Counter(item.manifest["name"] for item in items)
    if doubled := [name for name, times in names.items() if times > 1]:
        raise ClientError(f"{source} has more than one adapter named {doubled[0]!r}.", 2)
    for name in names:
        if (problem := check_name(name)) is not None:
            raise ClientError(f"{name!r} cannot be an expert's name: {problem.what}. {problem.fix}", 2)
    return items


def _from_entry(entry: Path, read_examples: ReadExamples) -> Item | None:
    if entry.is_file():
        ending = next((each for each in ARCHIVES if entry.name.endswith(each)), None)
        return None if ending is None else Item({"name": entry.name.removesuffix(ending)}, entry)
    if not (entry / CONFIG_FILE).is_file() and not any(
        entry.glob("adapter_*")
    ):  # an incomplete adapter is refused by name
        return None
    manifest: dict[str, Any] = {"name": entry.name}
    for file in filter(Path.is_file, (entry / name for name in MANIFEST_FILES)):
        given = _read(file)
        if len(given) != 1:
            raise ClientError(f"{file} must hold one manifest.", 2)
        manifest |= {key: value for key, value in given[0].items() if key != "source"}
    if "examples" not in manifest:
        for file in filter(Path.is_file, (entry / name for name in EXAMPLES_FILES)):
            manifest["examples"] = read_examples(file)
    return Item(manifest, entry)


def _from_manifest(entry: Mapping[str, Any], file: Path, number: int) -> Item:
    source = entry.get("source")
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(path, str) or not isinstance(entry.get("name"), str):
        raise ClientError(f"{file}, manifest {number}: 'name' or 'source.path' is missing.", 2)
    manifest = {key: value for key, value in entry.items() if key != "source"}
    return Item(manifest, (file.parent / path).absolute())


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        raw = file.read_bytes()
        found = yaml.safe_load(raw) if file.suffix in (".yaml", ".yml") else orjson.loads(raw)
    except (OSError, orjson.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClientError(f"{file} cannot be read: {error}.", 2) from None
    entries = found if isinstance(found, list) else [found]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ClientError(f"{file} must hold manifests: objects with 'name' and more.", 2)
    return entries


def import_all(
    items: list[Item],
    before: Mapping[str, Mapping[str, Any]],
    register: Register,
    parallel: int,
    progress: Callable[[int, int], None],
) -> list[Outcome]:
    """Register all items, several at a time; returns their outcomes in the order of `items`.

    Args:
        items: The adapters to register.
        before: The active adapters, by name.
        register: Registers one item.
        parallel: Number of registrations at a time.
        progress: Called with the number done and the total.
    """
    outcomes: dict[int, Outcome] = {}
    progress(0, len(items))
    with ThreadPoolExecutor(parallel) as pool:
        tasks = {pool.submit(_one, item, before, register): place for place, item in enumerate(items)}
        for done, task in enumerate(as_completed(tasks), 1):
            outcomes[tasks[task]] = task.result()
            progress(done, len(items))
    return [outcomes[place] for place in range(len(items))]


def _one(item: Item, before: Mapping[str, Mapping[str, Any]], register: Register) -> Outcome:
    name = item.manifest["name"]
    earlier = before.get(name)
    try:
        record = register(item.manifest, item.place)
    except ClientError as error:
        if error.exit_code == 3:  # no gateway answers; the other items report the same
            return Outcome(name, "refused", "the gateway does not answer")
        return Outcome(name, "refused", str(error))
    if earlier is None:
        return Outcome(name, "new", record["id"])
    same = earlier["id"] == record["id"] and earlier["updated_at"] == record["updated_at"]
    if same:
        return Outcome(name, "unchanged", record["id"])
    return Outcome(name, "described anew" if earlier["id"] == record["id"] else "new version", record["id"])
