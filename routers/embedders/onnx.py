"""The default encoder: a BERT-like sentence encoder (all-MiniLM-L6-v2) in ONNX Runtime, in integers, without torch.

The first opening writes the graph into the cache folder (`onnx_export`). The precision is the fastest that is exact
enough on this processor: int8, or int7 on x86 without VNNI, whose 8-bit products saturate. Every opening embeds a few
calibration texts and compares them with their float32 embeddings from the export. If a cosine is below 0.99, the
encoder uses float32 instead.

A text's vector does not depend on the batch it is embedded in, beyond float32 rounding. Runtime needs: onnxruntime,
tokenizers, safetensors, filelock; `onnx` only for the first opening.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from routers.base import Matrix, Progress, no_progress
from routers.embedders.base import clean_text, unit_rows
from routers.embedders.bert_graph import Precision
from routers.embedders.onnx_export import (
    CALIBRATION,
    SentenceModel,
    exported,
    load_tokenizer,
    pad,
    session,
)
from routers.errors import EmbedderError

log = logging.getLogger(__name__)

_MIN_COSINE = 0.99
_MAX_CHARS = 16_384
_MAX_BATCH_TOKENS = 1024


class OnnxEncoder:
    """A sentence encoder of one model folder; safe to call from one thread at a time."""

    def __init__(
        self,
        folder: Path,
        cache_dir: Path,
        *,
        name: str | None = None,
        precision: Precision | None = None,
        num_threads: int = 1,
        progress: Progress = no_progress,
    ) -> None:
        """Open a model folder, exporting it into `cache_dir` if needed.

        Args:
            folder: Has config.json, tokenizer.json and model.safetensors.
            cache_dir: Cache for exported graphs.
            name: First part of the encoder's name; the folder's name if None.
            precision: Arithmetic of the linear maps; None chooses the fastest one that suits the processor.
            num_threads: Threads of ONNX Runtime.
            progress: Called with the steps of an export.

        Raises:
            EmbedderError: A file or a package is missing, or the cache cannot be written.
        """
        check_packages()
        precision = precision or integer_precision()
        model = SentenceModel.read(folder)
        made = exported(model, cache_dir, precision, progress)
        self._session: Any = session(made / "model.onnx", num_threads)
        self._tokenizer = load_tokenizer(model)
        self.dim = model.shape.hidden
        if precision != "fp32" and self._worst_cosine(made) < _MIN_COSINE:
            log.warning("%s is too inexact for %s on this processor: using float32", precision, folder.name)
            precision = "fp32"
            made = exported(model, cache_dir, precision, progress)
            self._session = session(made / "model.onnx", num_threads)
        self.precision = precision
        self.name = f"{name or folder.name}/onnx-{precision}"

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Return unit rows, shape (len(texts), dim); text beyond the model's window (256 tokens) is ignored."""
        if self._session is None:
            raise EmbedderError("this encoder is closed")
        tokens = [self.token_ids(text) for text in texts]
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for batch in _batches([len(ids) for ids in tokens]):
            feed = pad([tokens[i] for i in batch])
            rows[batch] = self._session.run(["embedding"], feed)[0]
        return unit_rows(rows)

    def token_ids(self, text: str) -> list[int]:
        """Return the model's tokens of a text, including special tokens, cut at the window."""
        ids: list[int] = self._tokenizer.encode(clean_text(text[:_MAX_CHARS])).ids
        return ids

    def close(self) -> None:
        """Free the model."""
        self._session = None

    def _worst_cosine(self, made: Path) -> float:
        from safetensors.numpy import load_file

        expected = load_file(made / "reference.safetensors")["embeddings"]
        return float((self.encode(CALIBRATION) * expected).sum(axis=1).min())


def integer_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> Precision:
    """Choose int8 if the processor adds 8-bit products without saturation, else int7.

    x86 does so with VNNI or AMX; other processors do so always. An unreadable `cpuinfo` means int7, which is exact
    everywhere.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "int8"
    try:
        flags = set(re.findall(r"\w+", cpuinfo.read_text("utf-8")))
    except OSError:
        return "int7"
    return "int8" if flags & {"avx512_vnni", "avx_vnni", "amx_int8"} else "int7"


def check_packages() -> None:
    """Raise `EmbedderError` if a package of the ONNX encoder is missing."""
    missing = [
        p for p in ("onnxruntime", "tokenizers", "safetensors", "filelock") if importlib.util.find_spec(p) is None
    ]
    if missing:
        raise EmbedderError(
            f"the ONNX embedder needs the packages {', '.join(missing)}", "pip install " + " ".join(missing)
        )


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Group indices into batches of similar length, each of up to `_MAX_BATCH_TOKENS` tokens with padding."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        longest = lengths[index]
        fits = batches and longest * (len(batches[-1]) + 1) <= _MAX_BATCH_TOKENS
        if fits and longest <= 1.25 * lengths[batches[-1][0]] + 2:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
