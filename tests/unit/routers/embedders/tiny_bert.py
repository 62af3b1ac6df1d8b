"""A BERT of random weights in a sentence-transformers folder, and what it computes, in plain numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.special import erf, softmax
from tokenizers import Tokenizer, models, pre_tokenizers, processors

LAYERS, HEADS, HIDDEN, INNER, POSITIONS = 2, 4, 32, 64, 48
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "hello", "world"]


def write_model(folder: Path, seed: int = 0, **config: object) -> dict[str, NDArray[np.float32]]:
    """Write the folder; the weights, by name."""
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}

    def add(name: str, *shape: int, scale: float = 0.3, shift: float = 0.0) -> None:
        weights[name] = (shift + scale * rng.normal(size=shape)).astype(np.float32)

    def norm(name: str) -> None:
        add(name + "LayerNorm.weight", HIDDEN, scale=0.1, shift=1.0)
        add(name + "LayerNorm.bias", HIDDEN)

    def dense(name: str, num_out: int, num_in: int) -> None:
        add(name + ".weight", num_out, num_in)
        add(name + ".bias", num_out)

    add("embeddings.word_embeddings.weight", len(WORDS), HIDDEN)
    add("embeddings.position_embeddings.weight", POSITIONS, HIDDEN)
    add("embeddings.token_type_embeddings.weight", 2, HIDDEN)
    norm("embeddings.")
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            dense(f"{prefix}attention.self.{part}", HIDDEN, HIDDEN)
        dense(prefix + "attention.output.dense", HIDDEN, HIDDEN)
        norm(prefix + "attention.output.")
        dense(prefix + "intermediate.dense", INNER, HIDDEN)
        dense(prefix + "output.dense", HIDDEN, INNER)
        norm(prefix + "output.")

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "model_type": "bert",
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_size": HIDDEN,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(facts | config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    return weights


def embed(weights: dict[str, NDArray[np.float32]], ids: list[int]) -> NDArray[np.float64]:
    """The embedding of one text of token ids, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return np.asarray(x * w[name + "LayerNorm.weight"] + w[name + "LayerNorm.bias"])

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return np.asarray(x @ w[name + ".weight"].T + w[name + ".bias"])

    def heads(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x.reshape(len(ids), HEADS, -1).transpose(1, 0, 2)

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.")
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        q, k, v = (heads(dense(x, f"{prefix}attention.self.{part}")) for part in ("query", "key", "value"))
        shares = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(HIDDEN / HEADS), axis=-1)
        mixed = (shares @ v).transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        x = norm(x + dense(mixed, prefix + "attention.output.dense"), prefix + "attention.output.")
        inner = dense(x, prefix + "intermediate.dense")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = norm(x + dense(inner, prefix + "output.dense"), prefix + "output.")
    mean = x.mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean))
