"""Arrow's prototypes: for every module of an adapter, the direction of its input that the adapter amplifies most.

    v = the top right singular vector of B A,   A of shape (r, d_in), B of shape (d_out, r)

B A itself is never formed. With the thin decompositions Aᵀ = Q_a R_a and B = Q_b R_b,

    B A = Q_b (R_b R_aᵀ) Q_aᵀ,

so v = Q_a v', where v' (r,) is the top right singular vector of the small core R_b R_aᵀ (r, r). The result is exact up
to float64 rounding; the cost is O((d_in + d_out) r²) per module. The sign of v is arbitrary and does not affect the
score |xᵀv|; alpha and rank do not change the direction. Source: Ostapenko et al. 2024, "Towards Modular LLMs by
Building and Reusing a Library of LoRAs", and the small-core SVD of its code (mttl, ``ArrowTransform``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from adapters_registry.checks.safetensors_header import TensorEntry, read_header
from adapters_registry.checks.tensors import pair_tensors

_MAX_HEADER_BYTES = 100 * 2**20


def top_right_singular_vector(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the unit vector v of shape (d_in,) that B A amplifies most; zeros if B A is zero.

    Args:
        a: Shape (r, d_in), any float dtype.
        b: Shape (d_out, r).
    """
    q_a, r_a = np.linalg.qr(np.asarray(a, np.float64).T)
    r_b = np.linalg.qr(np.asarray(b, np.float64), mode="r")
    _, values, right = np.linalg.svd(r_b @ r_a.T)
    if values[0] == 0.0:
        return np.zeros(np.shape(a)[1])
    return np.asarray(q_a @ right[0], np.float64)


def prototypes_of(weights: Path) -> Mapping[str, NDArray[np.float32]]:
    """Return the prototypes, each (d_in,), by module name, of a validated ``adapter_model.safetensors``."""
    factors = read_factors(weights)
    return {module: top_right_singular_vector(a, b).astype(np.float32) for module, (a, b) in factors.items()}


def read_factors(weights: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return A (r, d_in) and B (d_out, r) of every module of a validated ``adapter_model.safetensors``."""
    found: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    with weights.open("rb") as stream:
        entries = read_header(stream, weights.stat().st_size, _MAX_HEADER_BYTES)
        for module, pair in pair_tensors(entries).pairs.items():
            if pair.a is not None and pair.b is not None:
                found[module] = _read(stream, pair.a), _read(stream, pair.b)
    return found


def encode(prototypes: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Encode prototypes as a safetensors file."""
    encoded: bytes = save(dict(prototypes), metadata={"artefact": "arrow prototypes", "version": "1"})
    return encoded


def _read(stream: BinaryIO, tensor: TensorEntry) -> NDArray[np.float32]:
    stream.seek(tensor.begin)
    raw = stream.read(tensor.end - tensor.begin)
    if tensor.dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(raw, "<f2" if tensor.dtype == "F16" else "<f4").astype(np.float32)
    return values.reshape(tensor.shape)
