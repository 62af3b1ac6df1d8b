"""An encoder made of the base model: the mean of its hidden states over the prompt's tokens, at one layer.

    h(x) = mean over tokens t of H_layer(x)_t,  scaled to unit length

Methods that route by the base's representation of a prompt need it (Dynamic Adapter Merging, Twin-Merging). vLLM either
generates or pools, so this process loads the model a second time, up to that layer. torch and transformers are imported
when an encoder is made. Long prompts are cut to `MAX_TOKENS`.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapters_registry.disk.safe_files import sha256_of
from routers.base import Matrix
from routers.embedders.base import clean_text, unit_rows
from routers.embedders.unusable_packages import hide_unusable_packages
from routers.errors import EmbedderError

MAX_TOKENS = 512


class HiddenStateEncoder:
    """A causal language model without its last layers, used as a sentence encoder."""

    def __init__(self, model: str | Path, *, layer: int = -2, device: str | None = None) -> None:
        """Load `model`, a folder or hub name; `layer` counts as ``hidden_states`` does. Raises `EmbedderError`."""
        try:
            self._torch: Any = importlib.import_module("torch")
            hide_unusable_packages()
            transformers: Any = importlib.import_module("transformers")
        except ImportError as error:
            fix = "pip install torch transformers, or choose a router that does not need hidden states"
            raise EmbedderError("hidden states of the base need torch and transformers", fix) from error
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(model))
            self._model: Any = transformers.AutoModel.from_pretrained(str(model), dtype=self._torch.float32)
        except Exception as error:
            raise EmbedderError(f"transformers cannot load {str(model)!r} ({error})", "check the folder") from error
        num_layers = self._model.config.num_hidden_layers
        self._layer = layer if layer >= 0 else num_layers + 1 + layer
        if not 0 < self._layer <= num_layers:
            raise EmbedderError(f"{model} has no hidden states at layer {layer}", f"choose 1 to {num_layers}")
        self._model.eval().to(device or "cpu")
        if device in (None, "cpu"):
            self._torch.set_num_threads(1)  # on short texts two threads were ten times slower, waiting for each other
        self.name = f"hidden-states-{self._layer}:{Path(str(model)).name}{_content_of(Path(str(model)))}"
        self.dim = int(self._model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Return unit rows, shape (len(texts), dim); texts run one at a time, so that padding does not count."""
        if self._model is None:
            raise EmbedderError("this encoder is closed")
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            cut = {"truncation": True, "max_length": MAX_TOKENS}
            tokens = self._tokenizer(clean_text(text) or " ", return_tensors="pt", **cut)
            with self._torch.inference_mode():
                states = self._model(**tokens, output_hidden_states=True).hidden_states[self._layer]
            rows[row] = states[0].mean(dim=0).float().cpu().numpy()
        return unit_rows(rows) if len(texts) else rows

    def close(self) -> None:
        """Free the model."""
        self._model = None


def _content_of(folder: Path) -> str:
    """Return a hash of the model in a folder, because vectors are stored by name; empty for a name on a hub."""
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return f"@{digest.hexdigest()[:8]}"
