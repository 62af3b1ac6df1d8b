"""The base model as adapters see it: its linear modules and their shapes.

Shapes are read from safetensors headers (no tensor is loaded), or derived from the config of a Llama-like model without
usable weights. Every check of an adapter's modules and shapes compares with this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapters_registry.checks.safetensors_header import HeaderError, TensorEntry, read_header
from adapters_registry.errors import BadBaseModel, Problem, quote

_MAX_BASE_HEADER_BYTES = 64 * 1024 * 1024
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_NORM = re.compile(r"norm(\d|_|$)|_norm\b|layernorm", re.IGNORECASE)
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class BaseSpec:
    """Shapes of a base model's linear modules.

    Attributes:
        name: Name of the base; adapters' `base_model_name_or_path` is compared with it leniently.
        modules: Modules that an adapter may adapt: path, such as ``model.layers.0.self_attn.q_proj``, to (d_out, d_in).
        num_layers: Number of decoder layers.
        embeddings: Modules that exist but cannot be adapted here: input embedding and output head.
    """

    name: str
    modules: Mapping[str, tuple[int, int]]
    num_layers: int
    embeddings: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, path: Path) -> BaseSpec:
        """Read a model folder: the headers of its safetensors files, else its config.json. Raises BadBaseModel."""
        config = _read_json(path / "config.json")
        files = _weight_files(path)
        if files and not config.get("quantization_config"):  # packed weights do not show their shapes
            spec = cls._from_tensors(path.name, [entry for file in files for entry in _read_entries(file)])
            if spec.modules:
                return spec
        return cls.from_config(path.name, config)

    @classmethod
    def _from_tensors(cls, name: str, entries: Iterable[TensorEntry]) -> BaseSpec:
        modules: dict[str, tuple[int, int]] = {}
        embeddings: dict[str, tuple[int, int]] = {}
        for entry in entries:
            module, _, parameter = entry.name.rpartition(".")
            if parameter != "weight" or len(entry.shape) != 2:
                continue
            shape = (entry.shape[0], entry.shape[1])
            if _LAYER.match(entry.name) and not _NORM.search(module.rpartition(".")[2]):
                modules[module] = shape
            elif not _LAYER.match(entry.name):
                embeddings[module] = shape
        layers = {int(match[1]) for module in modules if (match := _LAYER.match(module))}
        return cls(name, dict(sorted(modules.items())), max(layers, default=-1) + 1, embeddings)

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any]) -> BaseSpec:
        """Derive the shapes from a Llama-like config.json (q, k, v, o, gate, up, down). Raises BadBaseModel."""
        try:
            hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
            num_layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
            kv_heads = int(config.get("num_key_value_heads") or heads)
            head_dim = int(config.get("head_dim") or hidden // heads)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            problem = Problem("config.json", f"lacks a valid size ({quote(error)})", "Give a Llama-like model.")
            raise BadBaseModel([problem]) from None
        if config.get("num_experts") or config.get("num_local_experts"):
            fix = "Give the folder with the model's unquantised safetensors."
            raise BadBaseModel([Problem("config.json", "shapes of a mixture-of-experts model cannot be derived", fix)])
        shapes = {
            "self_attn.q_proj": (heads * head_dim, hidden),
            "self_attn.k_proj": (kv_heads * head_dim, hidden),
            "self_attn.v_proj": (kv_heads * head_dim, hidden),
            "self_attn.o_proj": (hidden, heads * head_dim),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        modules = {f"model.layers.{i}.{short}": shape for i in range(num_layers) for short, shape in shapes.items()}
        vocabulary = (int(config.get("vocab_size") or 0), hidden)
        embeddings = {"model.embed_tokens": vocabulary, "lm_head": vocabulary}
        return cls(name, dict(sorted(modules.items())), num_layers, embeddings)


def _read_json(file: Path) -> dict[str, Any]:
    fix = "Give a model folder with config.json."
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadBaseModel([Problem(str(file), error.strerror or str(error), fix)]) from None
    except (ValueError, RecursionError):
        raise BadBaseModel([Problem(str(file), "is not valid JSON", fix)]) from None
    if not isinstance(parsed, dict):
        raise BadBaseModel([Problem(str(file), "is not a JSON object", fix)])
    return parsed


def _weight_files(path: Path) -> list[Path]:
    """Return the model's safetensors files: those that the index names, else the single one; empty if none."""
    if (path / _INDEX).is_file():
        weight_map = _read_json(path / _INDEX).get("weight_map")
        names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        return [path / Path(name).name for name in names]
    single = path / "model.safetensors"
    return [single] if single.is_file() else []


def _read_entries(file: Path) -> tuple[TensorEntry, ...]:
    try:
        with file.open("rb") as stream:
            return read_header(stream, file.stat().st_size, _MAX_BASE_HEADER_BYTES)
    except HeaderError as error:
        raise BadBaseModel([Problem(str(file), str(error), "Fetch the model again.")]) from None
    except OSError as error:
        raise BadBaseModel([Problem(str(file), error.strerror or str(error), "Fetch the model again.")]) from None
