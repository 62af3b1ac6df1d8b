"""Arrow's prototypes against a plain singular value decomposition of B A in float64."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters_registry.merging.arrow_prototypes import encode, prototypes_of, top_right_singular_vector
from tests.support.adapters import LAYERS, make_adapter


@pytest.mark.parametrize(("rank", "d_in", "d_out"), [(1, 8, 8), (4, 32, 8), (8, 16, 64), (16, 24, 12)])
def test_the_vector_is_the_one_of_the_full_product(rank: int, d_in: int, d_out: int, rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(rank, d_in)), rng.normal(size=(d_out, rank))
    vector = top_right_singular_vector(a, b)
    expected = np.linalg.svd(b @ a)[2][0]
    assert abs(vector @ expected) == pytest.approx(1.0, abs=1e-9)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-12)


def test_nearly_equal_singular_values_are_told_apart(rng: np.random.Generator) -> None:
    left, right = np.linalg.qr(rng.normal(size=(48, 4)))[0], np.linalg.qr(rng.normal(size=(32, 4)))[0]
    b = left * np.array([1.0, 0.9999, 0.5, 0.1])  # σ2/σ1 near 1, where power iteration takes thousands of steps
    vector = top_right_singular_vector(right.T, b)
    assert abs(vector @ right[:, 0]) == pytest.approx(1.0, abs=1e-6)


def test_a_module_that_changes_nothing_has_no_direction() -> None:
    assert not top_right_singular_vector(np.ones((2, 4)), np.zeros((3, 2))).any()


@pytest.mark.parametrize("dtype", ["f4", "f2", "bf16"])
def test_every_module_of_a_file_gets_its_vector(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    folder = make_adapter(tmp_path / "a", seed=int(rng.integers(1000)))
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    if dtype == "bf16":
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file as save_torch

        rounded = {name: torch.from_numpy(value).bfloat16() for name, value in tensors.items()}
        save_torch(rounded, weights)
        tensors = {name: value.float().numpy() for name, value in rounded.items()}
    else:
        tensors = {name: value.astype(dtype) for name, value in tensors.items()}
        save_file(tensors, weights)
    found = prototypes_of(weights)
    assert len(found) == 2 * LAYERS
    for module, vector in found.items():
        a = tensors[f"base_model.model.{module}.lora_A.weight"].astype(np.float64)
        b = tensors[f"base_model.model.{module}.lora_B.weight"].astype(np.float64)
        assert abs(vector @ np.linalg.svd(b @ a)[2][0]) == pytest.approx(1.0, abs=1e-5)
    assert encode(found)
