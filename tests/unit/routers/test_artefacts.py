"""Artefacts on disk: whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from adapters_registry.disk import safe_files
from routers import artefacts
from routers.artefacts import ArtefactStore, load_artefact, reading, save_artefact
from routers.base import Artefact
from routers.errors import BadArtefact


def artefact(number: int = 0) -> Artefact:
    arrays = {
        "numbers": np.arange(6, dtype=np.float32).reshape(2, 3) + number,
        "turned": np.arange(6, dtype=np.int64).reshape(2, 3).T,
        "empty": np.zeros((0, 4), dtype=np.float16),
        "flags": np.array([True, False]),
    }
    return Artefact("knn", arrays, {"experts": ["a@0", "🙂\ud800"], "n": number, "x": None}, "f" * 64, "hashing")


def assert_equal(a: Artefact, b: Artefact) -> None:
    assert (a.router, a.data, a.library_version, a.embedder) == (b.router, b.data, b.library_version, b.embedder)
    assert a.arrays.keys() == b.arrays.keys()
    for name, array in a.arrays.items():
        assert array.dtype == b.arrays[name].dtype
        np.testing.assert_array_equal(array, b.arrays[name])


def test_round_trip(tmp_path: Path) -> None:
    save_artefact(artefact(), tmp_path / "deep" / "one")
    assert_equal(load_artefact(tmp_path / "deep" / "one"), artefact())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["one"]


def test_never_overwrites(tmp_path: Path) -> None:
    save_artefact(artefact(1), tmp_path / "one")
    with pytest.raises(FileExistsError):
        save_artefact(artefact(2), tmp_path / "one")
    assert_equal(load_artefact(tmp_path / "one"), artefact(1))


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "no arrays", "no facts", "bad json", "format", "list", "field", "data"]
)
def test_every_damage_is_found(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "one"
    save_artefact(artefact(), folder)
    arrays, facts = folder / "artefact.safetensors", folder / "artefact.json"
    content = json.loads(facts.read_text())
    match damage:
        case "flip":
            raw = bytearray(arrays.read_bytes())
            raw[-1] ^= 1
            arrays.write_bytes(raw)
        case "cut":
            arrays.write_bytes(arrays.read_bytes()[:-5])
        case "no arrays":
            arrays.unlink()
        case "no facts":
            facts.unlink()
        case "bad json":
            facts.write_text(facts.read_text()[:-3])
        case "format":
            facts.write_text(json.dumps(content | {"format": 99}))
        case "list":
            facts.write_text("[]")
        case "field":
            facts.write_text(json.dumps(content | {"router": 5}))
        case "data":
            facts.write_text(json.dumps(content | {"data": 5}))
    with pytest.raises(BadArtefact):
        load_artefact(folder)


def test_store_swaps_and_prunes(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path, num_kept=3)
    assert store.current("auto") is None
    folders = []
    for number in range(12):
        folders.append(store.publish("auto", artefact(number)))
        current = store.current("auto")
        assert current is not None
        assert_equal(current, artefact(number))
    assert folders[-1].name == "f" * 16 + "-12"
    kept = sorted(p.name for p in (tmp_path / "auto").iterdir())
    assert kept == sorted(["current", *(folder.name for folder in folders[-3:])])
    assert ArtefactStore(tmp_path).current("auto") is not None
    assert store.current("other") is None


def test_the_name_tells_whether_an_artefact_is_worth_reading(tmp_path: Path) -> None:
    store, other = ArtefactStore(tmp_path), replace(artefact(), library_version="../0" * 16)
    assert not store.may_be_of("auto", "f" * 64)
    store.publish("auto", artefact())
    assert store.may_be_of("auto", "f" * 64)
    assert not store.may_be_of("auto", other.library_version)
    store.publish("auto", other)
    assert store.may_be_of("auto", other.library_version)
    assert not store.may_be_of("auto", "f" * 64)


def test_a_write_that_fails_leaves_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtefactStore(tmp_path)
    store.publish("auto", artefact(1))
    real = safe_files.flush

    for file in ("artefact.safetensors", "artefact.json", ".current-" + str(os.getpid())):

        def full_disk(sink: BinaryIO, failing: str = file) -> None:
            if Path(sink.name).name == failing:
                raise OSError(28, "No space left on device")
            real(sink)

        for module in (artefacts, safe_files):
            monkeypatch.setattr(module, "flush", full_disk)
        with pytest.raises(OSError, match="No space"):
            store.publish("auto", artefact(2))
        current = store.current("auto")
        assert current is not None
        assert current.data["n"] == 1
    monkeypatch.undo()
    store.publish("auto", artefact(3))
    assert not [p for p in (tmp_path / "auto").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("content", [b"", b"../../etc", b"gone-7", b"\xff\xfe"])
def test_a_broken_pointer_is_a_bad_artefact(tmp_path: Path, content: bytes) -> None:
    store = ArtefactStore(tmp_path)
    store.publish("auto", artefact())
    (tmp_path / "auto" / "current").write_bytes(content)
    with pytest.raises(BadArtefact):
        store.current("auto")
    store.publish("auto", artefact(5))
    current = store.current("auto")
    assert current is not None
    assert current.data["n"] == 5


@pytest.mark.parametrize("policy", ["", "..", "a/b", ".hidden", "x" * 101, "a\x00"])
def test_policy_names_cannot_leave_the_root(tmp_path: Path, policy: str) -> None:
    with pytest.raises(ValueError, match="policy name"):
        ArtefactStore(tmp_path).publish(policy, artefact())


@pytest.mark.parametrize(
    "read", [lambda a: a.data["gone"], lambda a: float(a.data["words"]), lambda a: a.arrays["x"][9]]
)
def test_reading_reports_whatever_is_missing_or_invalid(read: Callable[[Artefact], object]) -> None:
    stored = Artefact("knn", {"x": np.zeros(1)}, {"words": "many"}, "v", "e")
    with pytest.raises(BadArtefact, match="the knn artefact"), reading(stored, "knn"):
        read(stored)
    with pytest.raises(BadArtefact, match="belongs to router 'knn'"), reading(stored, "tfidf"):
        pass
