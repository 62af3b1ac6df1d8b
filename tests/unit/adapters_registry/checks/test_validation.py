from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.checks.validation import AdapterFacts, validate_adapter
from adapters_registry.errors import InvalidAdapter
from adapters_registry.limits import AdapterLimits

Make = Callable[..., Any]
Write = Callable[..., Path]
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def judge(tmp_path: Path, base: BaseSpec, limits: AdapterLimits) -> Callable[..., AdapterFacts]:
    """Validates an adapter from memory."""

    def run(adapter: Any, **changes: Any) -> AdapterFacts:
        folder = adapter.write(tmp_path / "judged")
        return validate_adapter(
            folder, changes.get("base", base), dataclasses.replace(limits, **changes.get("limits", {}))
        )

    return run


def refusals(judge: Callable[..., AdapterFacts], adapter: Any, **changes: Any) -> str:
    """All problems as one text; the adapter must be refused, each problem with what to do."""
    with pytest.raises(InvalidAdapter) as caught:
        judge(adapter, **changes)
    assert all(problem.where and problem.what and problem.fix for problem in caught.value.problems)
    return "\n".join(map(str, caught.value.problems))


# -- what is accepted ----------------------------------------------------------------------------------------


def test_facts_of_a_good_adapter(judge: Any, make_adapter: Make) -> None:
    facts = judge(make_adapter())
    assert (facts.rank, facts.alpha, facts.target_modules) == (4, 8.0, ("q_proj", "v_proj"))
    assert (facts.base_model, facts.warnings) == ("tests/tiny-base", ())
    assert facts.size_bytes == len(make_adapter().weights())
    assert len(facts.sha256) == 64


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_dtypes(judge: Any, make_adapter: Make, dtype: str) -> None:
    assert judge(make_adapter(dtype=dtype)).rank == 4


@pytest.mark.parametrize(
    "targets",
    ["all-linear", r".*\.(q|v)_proj", ["self_attn.q_proj", "self_attn.v_proj"], ["q_proj", "v_proj", "c_attn"]],
)
def test_ways_to_write_targets(judge: Any, make_adapter: Make, base: BaseSpec, targets: Any) -> None:
    modules = list(base.modules) if targets == "all-linear" else None
    assert judge(make_adapter(modules=modules, target_modules=targets)).rank == 4


def test_layers_and_exclusions(judge: Any, make_adapter: Make) -> None:
    judge(make_adapter(modules=[Q0], target_modules=["q_proj"], layers_to_transform=[0]))
    judge(make_adapter(modules=[Q0], target_modules=["q_proj"], exclude_modules=r".*layers\.1.*"))


def test_ranks_per_module(judge: Any, make_adapter: Make) -> None:
    adapter = make_adapter(
        ranks={Q0: 8}, rank_pattern={r"layers.0.self_attn.q_proj": 8}, alpha_pattern={"v_proj": 2}, use_rslora=True
    )
    facts = judge(adapter)
    assert facts.rank == 8
    config = json.loads(facts.config)
    assert config["rank_pattern"] == {r"model\.layers\.0\.self_attn\.q_proj": 8}
    assert set(config["alpha_pattern"].values()) == {2}
    assert config["use_rslora"] is True


def test_the_hash_depends_on_what_matters_only(judge: Any, make_adapter: Make) -> None:
    first = judge(make_adapter())
    same = make_adapter(target_modules=r".*(q_proj|v_proj)", lora_dropout=0.1, peft_version="9", revision="x")
    assert judge(same).sha256 == first.sha256
    assert judge(same, base=None).sha256 == first.sha256
    assert judge(make_adapter(lora_alpha=16)).sha256 != first.sha256
    assert judge(make_adapter(use_rslora=True)).sha256 != first.sha256
    assert judge(make_adapter(seed=1)).sha256 != first.sha256


def test_what_is_kept_validates_to_itself(judge: Any, make_adapter: Make) -> None:
    adapter = make_adapter(ranks={Q0: 8}, rank_pattern={"layers.0.self_attn.q_proj": 8})
    first = judge(adapter)
    adapter.config = json.loads(first.config)
    assert judge(adapter) == first


def test_without_a_base_the_config_still_binds(judge: Any, make_adapter: Make) -> None:
    assert judge(make_adapter(), base=None).rank == 4
    assert "shape" in refusals(judge, make_adapter(r=8), base=None)


@pytest.mark.parametrize("name", ["TINY-BASE", "/srv/models/tiny-base", "other-org/Tiny-Base", None])
def test_base_names_are_compared_leniently(judge: Any, make_adapter: Make, name: str | None) -> None:
    assert judge(make_adapter(base_model_name_or_path=name), limits={"allow_other_base_name": False}).warnings == ()


def test_another_base_name_is_a_warning_or_a_refusal(judge: Any, make_adapter: Make) -> None:
    adapter = make_adapter(base_model_name_or_path="someone/other")
    assert "other" in judge(adapter).warnings[0]
    assert "other" in refusals(judge, adapter, limits={"allow_other_base_name": False})


# -- files ---------------------------------------------------------------------------------------------------


def test_documents_and_subfolders_are_ignored(write_adapter: Write, base: BaseSpec, limits: AdapterLimits) -> None:
    folder = write_adapter()
    for name in ("README.md", "LICENSE", "tokenizer.json", "chat_template.jinja", ".gitattributes"):
        (folder / name).write_text("x")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "optimizer.pt").write_text("x")
    assert validate_adapter(folder, base, limits).rank == 4


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "optimizer.pt", "x.PKL", "a.pth", "run.py", "lib.so", "new_embeddings.safetensors"]
)
def test_other_files_are_refused_by_name(
    write_adapter: Write, base: BaseSpec, limits: AdapterLimits, name: str
) -> None:
    folder = write_adapter()
    (folder / name).write_text("x")
    with pytest.raises(InvalidAdapter, match=name):
        validate_adapter(folder, base, limits)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files(write_adapter: Write, base: BaseSpec, limits: AdapterLimits, missing: str) -> None:
    folder = write_adapter()
    (folder / missing).unlink()
    with pytest.raises(InvalidAdapter, match=f"{missing}: is missing"):
        validate_adapter(folder, base, limits)


def test_both_missing_files_are_named(tmp_path: Path, base: BaseSpec, limits: AdapterLimits) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        validate_adapter(tmp_path, base, limits)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_files_must_be_regular(write_adapter: Write, base: BaseSpec, limits: AdapterLimits, kind: str) -> None:
    folder = write_adapter()
    weights = folder / "adapter_model.safetensors"
    if kind == "link":
        weights.rename(folder / "elsewhere.txt")
        weights.symlink_to(folder / "elsewhere.txt")
    else:
        weights.unlink()
        os.mkfifo(weights) if kind == "pipe" else weights.mkdir()
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors"):
        validate_adapter(folder, base, limits)


def test_folders_that_are_none(write_adapter: Write, tmp_path: Path, base: BaseSpec, limits: AdapterLimits) -> None:
    (tmp_path / "link").symlink_to(write_adapter())
    (tmp_path / "file").write_text("x")
    for name in ("link", "file", "nowhere"):
        with pytest.raises(InvalidAdapter, match=name):
            validate_adapter(tmp_path / name, base, limits)


def test_too_many_files(write_adapter: Write, base: BaseSpec, limits: AdapterLimits) -> None:
    folder = write_adapter()
    for i in range(30):
        (folder / f"{i}.txt").touch()
    with pytest.raises(InvalidAdapter, match="entries"):
        validate_adapter(folder, base, limits)


def test_sizes(judge: Any, make_adapter: Make) -> None:
    assert "more than" in refusals(judge, make_adapter(), limits={"max_adapter_bytes": 100})
    assert "more than" in refusals(judge, make_adapter(), limits={"max_config_bytes": 100})
    assert "header" in refusals(judge, make_adapter(), limits={"max_header_bytes": 100})


# -- tensors -------------------------------------------------------------------------------------------------


def test_every_problem_is_reported_at_once(judge: Any, make_adapter: Make) -> None:
    adapter = make_adapter(use_dora=True, bias="all")
    adapter.set_factor(Q0, "A", np.full((4, 16), np.nan))
    adapter.set_factor("model.layers.0.self_attn.v_proj", "A", np.ones((4, 17)))
    adapter.tensors["base_model.model.lm_head.weight"] = ("BF16", np.ones((2, 2), "<u2"))
    text = refusals(judge, adapter)
    for expected in ("DoRA", "bias", "NaN", "shape 4 by 17, expected 4 by 16", "lm_head"):
        assert expected in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.model.embed_tokens.lora_A.weight", "embedding"),
        ("base_model.model.lm_head.weight", "output head"),
        (f"base_model.model.{Q0}.lora_magnitude_vector", "DoRA"),
        (f"base_model.model.{Q0}.lora_B.bias", "bias"),
        (f"base_model.model.{Q0}.bias", "bias"),
        ("base_model.model.score.modules_to_save.weight", "fully trained"),
        (f"base_model.model.{Q0}.lora_A.default.weight", "adapter name"),
        (f"{Q0}.lora_A.weight", "not a LoRA weight"),
        (f"base_model.model.{Q0}.lora_C.weight", "not a LoRA weight"),
        ("base_model.model." + "x." * 400 + "lora_A.weight", "not a LoRA weight"),
        ("", "not a LoRA weight"),
    ],
)
def test_foreign_tensors_are_named(judge: Any, make_adapter: Make, name: str, expected: str) -> None:
    adapter = make_adapter()
    adapter.tensors[name] = ("BF16", np.ones((4, 16), "<u2"))
    assert expected in refusals(judge, adapter)


def test_modules_that_the_base_lacks(judge: Any, make_adapter: Make) -> None:
    adapter = make_adapter(modules=["model.layers.7.self_attn.q_proj"], target_modules=["q_proj"])
    text = refusals(judge, adapter)
    assert "no such linear layer" in text
    assert "has no tensors for it" in text


def test_file_and_config_must_name_the_same_modules(judge: Any, make_adapter: Make) -> None:
    assert "does not select it" in refusals(judge, make_adapter(target_modules=["q_proj"]))
    assert "has no tensors for it" in refusals(judge, make_adapter(target_modules=["q_proj", "v_proj", "o_proj"]))


@pytest.mark.parametrize("side", ["A", "B"])
def test_pairs(judge: Any, make_adapter: Make, side: str) -> None:
    adapter = make_adapter()
    del adapter.tensors[adapter.factor(Q0, side)]
    assert f"lora_{side} is missing" in refusals(judge, adapter)


@pytest.mark.parametrize("shape", [(4, 15), (16, 4), (5, 16), (64,), (4, 4, 4), (0, 16)])
def test_shapes(judge: Any, make_adapter: Make, shape: tuple[int, ...]) -> None:
    adapter = make_adapter()
    adapter.set_factor(Q0, "A", np.ones(shape))
    assert "shape" in refusals(judge, adapter)


def test_rank_must_be_the_configs(judge: Any, make_adapter: Make) -> None:
    assert "expected 8 by 16" in refusals(judge, make_adapter(r=8))


def test_rank_limit(judge: Any, make_adapter: Make) -> None:
    adapter = make_adapter(ranks={Q0: 8}, rank_pattern={"layers.0.self_attn.q_proj": 8})
    assert "exceeds" in refusals(judge, adapter, limits={"max_rank": 7})
    assert judge(adapter, limits={"max_rank": 8}).rank == 8


@pytest.mark.parametrize("dtype", ["F64", "I8"])
def test_other_dtypes_are_named(judge: Any, make_adapter: Make, dtype: str) -> None:
    adapter = make_adapter()
    adapter.set_factor(Q0, "A", np.ones((4, 16)), dtype)
    assert f"dtype '{dtype}'" in refusals(judge, adapter)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(judge: Any, make_adapter: Make, dtype: str, value: float) -> None:
    adapter = make_adapter(dtype=dtype)
    spoilt = np.ones((16, 4))
    spoilt[15, 3] = value
    adapter.set_factor(Q0, "B", spoilt, dtype)
    assert f"{adapter.factor(Q0, 'B')}': holds NaN or infinity" in refusals(judge, adapter)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("side", ["A", "B"])
def test_adapters_that_change_nothing(judge: Any, make_adapter: Make, dtype: str, side: str) -> None:
    adapter = make_adapter(modules=[Q0], target_modules=[Q0], dtype=dtype)
    shape = {"A": (4, 16), "B": (16, 4)}[side]
    adapter.set_factor(Q0, side, np.full(shape, -0.0), dtype)
    assert "changes nothing" in refusals(judge, adapter)


def test_one_module_that_changes_something_is_enough(judge: Any, make_adapter: Make) -> None:
    adapter = make_adapter()
    adapter.set_factor(Q0, "B", np.zeros((16, 4)))
    assert judge(adapter).rank == 4


def test_no_tensors_at_all(write_adapter: Write, base: BaseSpec, limits: AdapterLimits, frame_safetensors: Any) -> None:
    folder = write_adapter()
    (folder / "adapter_model.safetensors").write_bytes(frame_safetensors({}, b""))
    with pytest.raises(InvalidAdapter, match="no tensors"):
        validate_adapter(folder, base, limits)


def test_hostile_patterns_are_problems(judge: Any, make_adapter: Make) -> None:
    assert "regular expression" in refusals(judge, make_adapter(target_modules="(q_proj"))
    assert "regular expression" in refusals(judge, make_adapter(rank_pattern={"(q_proj": 4}))


def test_thousands_of_problems_are_counted(judge: Any, make_adapter: Make) -> None:
    adapter = make_adapter()
    for i in range(500):
        adapter.tensors[f"extra.{i}"] = ("BF16", np.ones(1, "<u2"))
    assert "more problems" in refusals(judge, adapter)


# -- noise ---------------------------------------------------------------------------------------------------

QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


@QUIET
@given(noise=st.binary(max_size=400), config=st.binary(max_size=200))
def test_random_files_are_refused(
    tmp_path: Path, base: BaseSpec, limits: AdapterLimits, noise: bytes, config: bytes
) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(noise)
    (tmp_path / "adapter_config.json").write_bytes(config)
    with pytest.raises(InvalidAdapter):
        validate_adapter(tmp_path, base, limits)


@QUIET
@given(data=st.data())
def test_flipped_bytes_are_refused_or_harmless(
    tmp_path: Path, base: BaseSpec, limits: AdapterLimits, make_adapter: Make, data: st.DataObject
) -> None:
    folder = make_adapter().write(tmp_path / "flipped")
    file = folder / data.draw(st.sampled_from(["adapter_model.safetensors", "adapter_config.json"]))
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw), 3000) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) - 1, 8, 100]))])
    try:
        validate_adapter(folder, base, limits)
    except InvalidAdapter as error:
        assert error.problems
