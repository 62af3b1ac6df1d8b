from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.checks.peft_config import LoraSettings, base_name, normalised_config, read_config
from adapters_registry.checks.supported_peft import find_unsupported


@pytest.mark.parametrize(
    ("given_name", "kept"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("SmolLM2", "SmolLM2"),
        ("/home/someone/models/SmolLM2/", "SmolLM2"),
        ("C:\\Users\\me\\SmolLM2", "SmolLM2"),
        ("~/models/SmolLM2", "SmolLM2"),
        ("./SmolLM2", "SmolLM2"),
        ("s3://bucket/SmolLM2", "SmolLM2"),
        (None, ""),
        (7, ""),
        ("x" * 500, ""),
        ("a\u202eb", "ab"),
    ],
)
def test_base_names_lose_their_host(given_name: object, kept: str) -> None:
    assert base_name(given_name) == kept


@given(st.text())
def test_base_names_are_stable(text: str) -> None:
    assert base_name(base_name(text)) == base_name(text)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"r": NaN}', b'"text"'])
def test_what_is_no_config(raw: bytes) -> None:
    settings, problems = read_config(raw)
    assert settings is None
    assert problems


@given(
    st.binary() | st.dictionaries(st.text(max_size=8), st.text() | st.integers()).map(lambda d: json.dumps(d).encode())
)
def test_reading_is_total(raw: bytes) -> None:
    settings, problems = read_config(raw)
    assert settings is None
    assert problems


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("peft_type", "ADALORA"),
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 2]]),
        ("lora_bias", True),
        ("megatron_config", {"x": 1}),
        ("fan_in_fan_out", True),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("kasa_config", {"beta": 1}),
        ("arrow_config", {"top_k": 3}),
        ("monteclora_config", {"n": 1}),
        ("velora_config", {"num_groups": 4}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("some_new_variant", True),
    ],
)
def test_unsupported_options_are_named(make_adapter: Callable[..., Any], option: str, value: object) -> None:
    problems = find_unsupported(make_adapter(**{option: value}).config)
    assert len(problems) == 1
    assert option in problems[0].where
    assert problems[0].fix


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", "eva"),
        ("init_lora_weights", False),
        ("eva_config", {"rho": 2.0}),
        ("corda_config", {"corda_method": "ipm"}),
        ("loftq_config", {"loftq_bits": 4}),
        ("lora_dropout", 0.1),
        ("revision", "main"),
        ("some_new_variant", None),
        ("some_new_variant", False),
    ],
)
def test_harmless_options(make_adapter: Callable[..., Any], option: str, value: object) -> None:
    assert find_unsupported(make_adapter(**{option: value}).config) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("r", 0),
        ("r", -1),
        ("r", True),
        ("r", "8"),
        ("r", 4.0),
        ("r", None),
        ("lora_alpha", 0),
        ("lora_alpha", "16"),
        ("lora_alpha", None),
        ("lora_alpha", 10**400),
        ("rank_pattern", {"q_proj": "x"}),
        ("rank_pattern", [1]),
        ("alpha_pattern", {"q_proj": 0}),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", ""),
        ("target_modules", [1]),
        ("target_modules", {"q_proj": 1}),
        ("target_modules", ["q_proj", "embed_tokens"]),
        ("target_modules", ["lm_head"]),
        ("exclude_modules", 3),
        ("layers_to_transform", "all"),
        ("layers_pattern", "(layers"),
    ],
)
def test_bad_values_are_named(make_adapter: Callable[..., Any], option: str, value: object) -> None:
    _, problems = read_config(json.dumps(make_adapter(**{option: value}).config).encode())
    assert [problem for problem in problems if option in problem.where]


def test_another_task_is_a_warning(make_adapter: Callable[..., Any]) -> None:
    settings, problems = read_config(json.dumps(make_adapter(task_type="SEQ_CLS").config).encode())
    assert settings is not None
    assert settings.warnings
    assert not problems


def test_the_normalised_config_is_canonical() -> None:
    ranks = {"model.layers.1.q": 4, "model.layers.0.q": 8}
    alphas = {"model.layers.0.q": 16.0, "model.layers.1.q": 8.0}
    settings = LoraSettings(rank=8, alpha=16.0, rule=None, base_model="org/base")
    raw = normalised_config(settings, ranks, alphas)
    assert raw == normalised_config(settings, dict(sorted(ranks.items())), alphas)
    config = json.loads(raw)
    assert config["target_modules"] == ["model.layers.0.q", "model.layers.1.q"]
    assert config["rank_pattern"] == {r"model\.layers\.1\.q": 4}
    assert config["alpha_pattern"] == {r"model\.layers\.1\.q": 8}
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (8, 16, "org/base")
