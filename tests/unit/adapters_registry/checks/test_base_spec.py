from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.errors import BadBaseModel

CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
Frame = Callable[[Any, bytes], bytes]


def weights(shapes: dict[str, tuple[int, ...]], frame: Frame) -> bytes:
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    return frame(header, bytes(position))


@pytest.fixture
def model(tmp_path: Path, base: BaseSpec, frame_safetensors: Frame) -> Path:
    shapes: dict[str, tuple[int, ...]] = {f"{module}.weight": shape for module, shape in base.modules.items()}
    shapes |= {f"{module}.weight": shape for module, shape in base.embeddings.items()}
    shapes |= {"model.norm.weight": (16,), "model.layers.0.input_layernorm.weight": (16,)}
    shapes |= {"model.layers.0.self_attn.q_norm.weight": (4, 4), "model.layers.0.self_attn.q_proj.bias": (16,)}
    folder = tmp_path / "tiny-base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(weights(shapes, frame_safetensors))
    return folder


def test_shapes_come_from_the_headers(model: Path, base: BaseSpec) -> None:
    assert BaseSpec.from_folder(model) == base


def test_sharded_models(model: Path, base: BaseSpec, frame_safetensors: Frame) -> None:
    (model / "model.safetensors").unlink()
    names = [f"{module}.weight" for module in base.modules]
    weight_map = {}
    for shard, part in enumerate((names[:5], names[5:])):
        file = f"model-{shard}.safetensors"
        shapes: dict[str, tuple[int, ...]] = {name: base.modules[name.removesuffix(".weight")] for name in part}
        (model / file).write_bytes(weights(shapes, frame_safetensors))
        weight_map |= dict.fromkeys(part, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert BaseSpec.from_folder(model).modules == base.modules


@pytest.mark.parametrize("quantised", [False, True])
def test_the_config_alone_is_enough_for_llama_like_models(model: Path, base: BaseSpec, quantised: bool) -> None:
    if quantised:
        (model / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": {"bits": 4}}))
    else:
        (model / "model.safetensors").unlink()
    spec = BaseSpec.from_folder(model)
    assert (spec.modules, spec.num_layers) == (base.modules, 2)


@pytest.mark.parametrize("config", ["[]", "{", "{}", json.dumps(CONFIG | {"num_experts": 8}), '{"hidden_size": "x"}'])
def test_unusable_configs(model: Path, config: str) -> None:
    (model / "model.safetensors").unlink()
    (model / "config.json").write_text(config)
    with pytest.raises(BadBaseModel):
        BaseSpec.from_folder(model)


def test_a_folder_that_is_no_model(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BadBaseModel):
        BaseSpec.from_folder(tmp_path)
    (model / "model.safetensors").write_bytes(b"short")
    with pytest.raises(BadBaseModel):
        BaseSpec.from_folder(model)
