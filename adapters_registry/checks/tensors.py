"""Checks of an adapter's tensors: they belong to modules of the base, have the right shapes, and hold usable numbers.

Names and shapes come from the header. Values are read in pieces, so memory stays bounded whatever the file claims.
NaN and infinity are found by their bits (all exponent bits set), which needs neither torch nor a bf16 type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.checks.safetensors_header import TensorEntry
from adapters_registry.disk.layout import WEIGHTS_FILE
from adapters_registry.errors import Problem, quote

_MAX_NAME_CHARS = 500
_CHUNK_BYTES = 4 * 1024 * 1024
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

_BITS: Mapping[str, tuple[np.dtype[Any], int, int]] = {
    "F32": (np.dtype("<u4"), 0x7F800000, 0x7FFFFFFF),
    "F16": (np.dtype("<u2"), 0x7C00, 0x7FFF),
    "BF16": (np.dtype("<u2"), 0x7F80, 0x7FFF),
}
"""dtype to (unsigned integer of the same width, mask of the exponent, mask of everything but the sign)."""

_REFUSED_NAMES = (
    ("lora_magnitude_vector", "belongs to DoRA, which is not supported", "Train an ordinary LoRA."),
    (
        "lora_embedding_",
        "adapts an embedding, which is not supported",
        "Train without embed_tokens and lm_head.",
    ),
    (".lora_bias", "is a bias of LoRA, which is not supported", "Train with lora_bias=False."),
    (".lora_B.bias", "is a bias of LoRA, which is not supported", "Train with lora_bias=False."),
    (".bias", "is a trained bias, which is not supported", "Train with bias='none'."),
    (
        "modules_to_save",
        "is a fully trained module, which is not supported",
        "Train without modules_to_save.",
    ),
    ("embed_tokens", "is an embedding, which is not supported", "Save with save_embedding_layers=False."),
    ("lm_head", "is the output head, which is not supported", "Save with save_embedding_layers=False."),
    (".default.weight", "still has PEFT's adapter name inside", "Save it with PEFT's save_pretrained."),
)


@dataclass
class LoraPair:
    """The two factors of one module: A of shape (r, d_in), B of shape (d_out, r)."""

    a: TensorEntry | None = None
    b: TensorEntry | None = None


@dataclass
class Pairing:
    """An adapter's tensors by module, and the problems with their names."""

    pairs: dict[str, LoraPair] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def where(tensor: str) -> str:
    """Return how a problem names one tensor of the file."""
    return f"{WEIGHTS_FILE}: {quote(tensor)}"


def pair_tensors(tensors: Iterable[TensorEntry]) -> Pairing:
    """Group tensors into pairs by module; every module in the result has both factors, in a readable dtype."""
    result = Pairing()
    for tensor in tensors:
        match = _NAME.fullmatch(tensor.name)
        refusal = next((found for found in _REFUSED_NAMES if found[0] in tensor.name), None)
        if refusal is not None:
            result.problems.append(Problem(where(tensor.name), refusal[1], refusal[2]))
        elif match is None or len(tensor.name) > _MAX_NAME_CHARS:
            fix = "Save it with PEFT's save_pretrained; names are base_model.model.<module>.lora_A.weight and lora_B."
            result.problems.append(Problem(where(tensor.name), "is not a LoRA weight", fix))
        elif tensor.dtype not in _BITS:
            what = f"has the dtype {quote(tensor.dtype)}"
            result.problems.append(Problem(where(tensor.name), what, "Save it as F32, F16 or BF16."))
        else:
            pair = result.pairs.setdefault(match["module"], LoraPair())
            if match["side"] == "A":
                pair.a = tensor
            else:
                pair.b = tensor
    for module, pair in result.pairs.items():
        if pair.a is None or pair.b is None:
            what = f"lora_{'A' if pair.a is None else 'B'} is missing or unusable"
            result.problems.append(Problem(f"{WEIGHTS_FILE}: {quote(module)}", what, "Both factors are needed."))
    return result


def check_shapes(
    pairs: Mapping[str, LoraPair], ranks: Mapping[str, int] | None, base: BaseSpec | None, max_rank: int
) -> list[Problem]:
    """Compare every pair with the config's ranks (None if the config is unusable), the base and the rank limit."""
    problems: list[Problem] = []
    for module, pair in pairs.items():
        shape = base.modules.get(module) if base else None
        if base and shape is None:
            problems.append(_unknown_module(module, base))
        rank = ranks.get(module) if ranks is not None else None
        if rank is not None and rank > max_rank:
            fix = f"Train with a smaller rank, or serve with --max-lora-rank {rank} or more."
            problems.append(Problem(where(module), f"rank {rank} exceeds the limit of {max_rank}", fix))
        if pair.a is not None:
            problems.extend(_shape_problems(pair.a, rank, shape[1] if shape else None, flip=False))
        if pair.b is not None:
            problems.extend(_shape_problems(pair.b, rank, shape[0] if shape else None, flip=True))
        if pair.a is not None and pair.b is not None and len(pair.a.shape) == len(pair.b.shape) == 2:
            if pair.a.shape[0] != pair.b.shape[1]:
                what = f"lora_A has rank {pair.a.shape[0]}, lora_B {pair.b.shape[1]}"
                problems.append(Problem(where(module), what, "Save it again with PEFT."))
    return problems


def _unknown_module(module: str, base: BaseSpec) -> Problem:
    if module in base.embeddings:
        return Problem(where(module), "is an embedding, which is not supported", "Train without it.")
    fix = "Train on this base: only its linear layers can be adapted."
    return Problem(where(module), f"the base {quote(base.name)} has no such linear layer", fix)


def _shape_problems(tensor: TensorEntry, rank: int | None, width: int | None, *, flip: bool) -> list[Problem]:
    """Check that A is (rank, width), or (`flip`) that B is (width, rank); None matches any size."""
    expected = (width, rank) if flip else (rank, width)
    if len(tensor.shape) == 2 and all(
        want in (None, have) and have > 0 for want, have in zip(expected, tensor.shape, strict=True)
    ):
        return []
    wanted = " by ".join("any" if size is None else str(size) for size in expected)
    found = " by ".join(map(str, tensor.shape)) or "a single number"
    fix = "The base's layer and the config's rank decide the shape: train on this base, and send its own config."
    return [Problem(where(tensor.name), f"has the shape {found}, expected {wanted}", fix)]


def check_values(stream: BinaryIO, pairs: Mapping[str, LoraPair]) -> list[Problem]:
    """Read every factor once; report NaN and infinity, and an adapter that changes nothing in any module."""
    problems: list[Problem] = []
    changes_something = False
    for pair in pairs.values():
        factors = [tensor for tensor in (pair.a, pair.b) if tensor is not None]
        nonzero = len(factors) == 2
        for tensor in factors:
            is_finite, is_nonzero = _scan(stream, tensor)
            nonzero = nonzero and is_nonzero
            if not is_finite:
                fix = "The training diverged: train again with a smaller learning rate or in higher precision."
                problems.append(Problem(where(tensor.name), "holds NaN or infinity", fix))
        changes_something = changes_something or nonzero
    if pairs and not changes_something:
        what = "changes nothing: in every module lora_B (or lora_A) is all zero"
        problems.append(Problem(WEIGHTS_FILE, what, "Send the trained adapter, not a freshly initialised one."))
    return problems


def _scan(stream: BinaryIO, tensor: TensorEntry) -> tuple[bool, bool]:
    """Return (all finite, any nonzero) of one tensor, read in pieces."""
    dtype, exponent, magnitude = _BITS[tensor.dtype]
    is_finite, is_nonzero = True, False
    stream.seek(tensor.begin)
    remaining = tensor.end - tensor.begin
    while remaining > 0:
        piece = stream.read(min(_CHUNK_BYTES, remaining))
        if not piece:
            return False, is_nonzero  # the file shrank while it was read
        remaining -= len(piece)
        bits = np.frombuffer(piece[: len(piece) - len(piece) % dtype.itemsize], dtype=dtype)
        is_finite = is_finite and not bool(np.any((bits & exponent) == exponent))
        is_nonzero = is_nonzero or bool(np.any(bits & magnitude))
    return is_finite, is_nonzero
