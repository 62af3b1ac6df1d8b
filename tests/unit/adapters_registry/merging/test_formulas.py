"""Merge formulas against PEFT's own on fresh random adapters, and against the plain products where PEFT has none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters_registry.errors import CannotMerge
from adapters_registry.merging.arrow_prototypes import read_factors
from adapters_registry.merging.compose import compose
from adapters_registry.merging.formulas import Factors, MergeOptions, merge
from adapters_registry.merging.method_names import METHODS, Method
from tests.support.adapters import make_adapter


def factors(rng: np.random.Generator, ranks: list[int], d_in: int = 12, d_out: int = 20) -> list[Factors]:
    return [
        Factors(
            rng.normal(size=(r, d_in)),
            rng.normal(size=(d_out, r)),
            float(rng.uniform(0.5, 3)),
            float(rng.uniform(0.1, 1)),
        )
        for r in ranks
    ]


def total(sources: list[Factors]) -> np.ndarray:
    return np.asarray(sum(s.weight * s.scaling * s.b @ s.a for s in sources))


def test_exact_is_the_weighted_sum_of_products(rng: np.random.Generator) -> None:
    sources = factors(rng, [2, 4, 1])
    a, b = merge({"m": sources}, "exact", MergeOptions())["m"]
    assert a.shape == (7, 12)
    np.testing.assert_allclose(b @ a, total(sources), rtol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 7, 20])
def test_svd_is_the_best_approximation_of_its_rank(rank: int, rng: np.random.Generator) -> None:
    sources = factors(rng, [2, 4, 1])
    a, b = merge({"m": sources}, "svd", MergeOptions(rank=rank))["m"]
    left, values, right = np.linalg.svd(total(sources), full_matrices=False)
    kept = min(rank, 7)
    assert len(a) == kept
    np.testing.assert_allclose(b @ a, left[:, :kept] * values[:kept] @ right[:kept], atol=1e-10)


def test_ab_linear_is_the_product_of_two_sums(rng: np.random.Generator) -> None:
    sources = factors(rng, [4, 4])
    a, b = merge({"m": sources}, "ab_linear", MergeOptions())["m"]
    np.testing.assert_allclose(a, sum(s.weight * s.a for s in sources))
    np.testing.assert_allclose(b, sum(s.weight * s.scaling * s.b for s in sources))


def test_a_module_that_one_source_lacks_is_merged_from_the_others(rng: np.random.Generator) -> None:
    sources = factors(rng, [4, 4])
    merged = merge({"both": sources, "one": sources[:1]}, "sqrt_linear", MergeOptions())
    alone = sources[0]
    np.testing.assert_allclose(merged["one"][1] @ merged["one"][0], alone.weight * alone.scaling * alone.b @ alone.a)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("exact", "svd")])
def test_unequal_ranks_are_refused_with_the_way_out(method: Method, rng: np.random.Generator) -> None:
    with pytest.raises(CannotMerge, match=r"needs equal ranks, but m has 2, 4; use exact or svd"):
        merge({"m": factors(rng, [2, 4])}, method, MergeOptions())


@pytest.mark.parametrize(
    ("options", "hint"), [(MergeOptions(rank=0), "below 1"), (MergeOptions(density=0.0), "above 0")]
)
def test_options_out_of_range_are_refused(options: MergeOptions, hint: str, rng: np.random.Generator) -> None:
    with pytest.raises(CannotMerge, match=hint):
        merge({"m": factors(rng, [2])}, "svd", options)


def test_dare_keeps_the_expected_value_and_repeats_with_its_seed(rng: np.random.Generator) -> None:
    sources = factors(rng, [4, 4], d_in=400, d_out=400)
    plain = merge({"m": sources}, "sqrt_linear", MergeOptions())["m"]
    first = merge({"m": sources}, "dare", MergeOptions(density=0.5, seed=1))["m"]
    again = merge({"m": sources}, "dare", MergeOptions(density=0.5, seed=1))["m"]
    np.testing.assert_array_equal(first[0], again[0])
    mean = np.mean(
        [merge({"m": sources}, "dare", MergeOptions(density=0.5, seed=s))["m"][0] for s in range(200)], axis=0
    )
    assert np.abs(mean - plain[0]).mean() < 0.15 * np.abs(plain[0]).mean()
    np.testing.assert_allclose(merge({"m": sources}, "dare", MergeOptions(density=1.0))["m"][0], plain[0])


PEFT_NAMES = {
    "exact": "cat",
    "svd": "svd",
    "sqrt_linear": "linear",
    "magnitude_prune": "magnitude_prune",
    "ties": "ties",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", list(PEFT_NAMES))
def test_methods_that_peft_has_are_peft_s(method: Method, tmp_path: Path, fresh_seed: int) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32,
    )  # fmt: skip
    weights = {"a": 0.6, "b": 0.9, "c": 0.25}
    folders = {name: make_adapter(tmp_path / name, seed=fresh_seed + i) for i, name in enumerate(weights)}
    model: Any = peft.PeftModel.from_pretrained(LlamaForCausalLM(config), folders["a"], adapter_name="a")
    for name in ("b", "c"):
        model.load_adapter(folders[name], name)
    kwargs = {"density": 0.4} if method in ("magnitude_prune", "ties") else {}
    kwargs |= {"svd_rank": 5} if method == "svd" else {}
    model.add_weighted_adapter(list(weights), list(weights.values()), "merged", PEFT_NAMES[method], **kwargs)

    for folder in folders.values():  # as the store normalises it
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {}, "use_rslora": False}))
    options = MergeOptions(rank=5, density=0.4)
    compose([(folders[name], weight) for name, weight in weights.items()], tmp_path / "ours", method, options, 64)
    ours = read_factors(tmp_path / "ours" / "adapter_model.safetensors")
    compared = 0
    for name, layer in model.named_modules():
        if "merged" in getattr(layer, "lora_A", {}):
            a, b = ours[name.removeprefix("base_model.model.")]
            theirs = layer.scaling["merged"] * layer.lora_B["merged"].weight @ layer.lora_A["merged"].weight
            torch.testing.assert_close(torch.from_numpy(b @ a), theirs.detach(), rtol=1e-3, atol=1e-3, msg=name)
            compared += 1
    assert compared == len(ours) == 4
