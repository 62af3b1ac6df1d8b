"""Builders: a tiny base, and valid PEFT folders for it that a test spoils in one place."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.library import Library
from adapters_registry.limits import AdapterLimits

HIDDEN, INNER, KV, LAYERS = 16, 24, 8, 2
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
MODULES = {f"model.layers.{layer}.{short}": shape for layer in range(LAYERS) for short, shape in SHAPES.items()}
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8", "I8": "|i1"}


@dataclass
class Adapter:
    """An adapter in memory: change `config` and `tensors`, then `write` it.

    `tensors` maps names to (dtype, array); bf16 arrays hold bit patterns as unsigned integers.
    """

    config: dict[str, Any]
    tensors: dict[str, tuple[str, np.ndarray[Any, Any]]] = field(default_factory=dict)

    def factor(self, module: str, side: str) -> str:
        """The tensor name of one factor."""
        return f"base_model.model.{module}.lora_{side}.weight"

    def set_factor(self, module: str, side: str, values: np.ndarray[Any, Any], dtype: str = "BF16") -> None:
        """Put one factor, given in float."""
        if dtype == "BF16":
            bits = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
            self.tensors[self.factor(module, side)] = (dtype, bits)
        else:
            self.tensors[self.factor(module, side)] = (dtype, values.astype(DTYPES[dtype]))

    def weights(self) -> bytes:
        """The safetensors file, written by hand so that tests do not check a library against itself."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        body = b""
        for name, (dtype, values) in self.tensors.items():
            raw = values.tobytes()
            header[name] = {
                "dtype": dtype,
                "shape": list(values.shape),
                "data_offsets": [len(body), len(body) + len(raw)],
            }
            body += raw
        return frame(header, body)

    def write(self, folder: Path) -> Path:
        """Write both files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(self.config))
        (folder / "adapter_model.safetensors").write_bytes(self.weights())
        return folder


def frame(header: Any, body: bytes) -> bytes:
    """A safetensors file from a header (JSON value or bytes) and a body."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def peft_config(**changes: Any) -> dict[str, Any]:
    """What a current PEFT writes, with changes."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "tests/tiny-base",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["v_proj", "q_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    } | changes


def build_adapter(
    *,
    modules: list[str] | None = None,
    ranks: dict[str, int] | None = None,
    dtype: str = "BF16",
    seed: int = 0,
    **config: Any,
) -> Adapter:
    """A valid adapter of q_proj and v_proj in all layers (or of `modules`); `config` changes the config only."""
    adapter = Adapter(peft_config(**config))
    generator = np.random.default_rng(seed)
    chosen = modules or [module for module in MODULES if module.endswith(("q_proj", "v_proj"))]
    for module in chosen:
        d_out, d_in = MODULES.get(module, (HIDDEN, HIDDEN))
        rank = (ranks or {}).get(module, 4)
        adapter.set_factor(module, "A", generator.normal(size=(rank, d_in)), dtype)
        adapter.set_factor(module, "B", generator.normal(size=(d_out, rank)), dtype)
    return adapter


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    """Builds an adapter in memory."""
    return build_adapter


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Writes a valid adapter (changed by keyword arguments) into a fresh folder."""
    counter = iter(range(10_000))

    def write(**changes: Any) -> Path:
        return build_adapter(**changes).write(tmp_path / f"adapter-{next(counter)}")

    return write


@pytest.fixture
def frame_safetensors() -> Callable[[Any, bytes], bytes]:
    """Puts a header and a body together."""
    return frame


@pytest.fixture
def base() -> BaseSpec:
    """A base of two small layers."""
    return BaseSpec("tiny-base", MODULES, LAYERS, {"model.embed_tokens": (100, HIDDEN), "lm_head": (100, HIDDEN)})


@pytest.fixture
def limits() -> AdapterLimits:
    """Small bounds, so that tests reach them."""
    return AdapterLimits(
        max_rank=16,
        max_adapter_bytes=200_000,
        max_config_bytes=20_000,
        max_archive_files=20,
        max_unpacked_bytes=300_000,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder that does not exist yet."""
    return tmp_path / "home"


@pytest.fixture
async def library(home: Path, base: BaseSpec, limits: AdapterLimits) -> AsyncIterator[Library]:
    """An open, empty library."""
    opened = await Library.open(home, base=base, limits=limits)
    yield opened
    await opened.close()
