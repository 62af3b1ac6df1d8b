from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.checks.safetensors_header import HeaderError, read_header

Frame = Callable[[Any, bytes], bytes]
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def read(raw: bytes, max_header_bytes: int = 10_000) -> tuple[Any, ...]:
    return read_header(io.BytesIO(raw), len(raw), max_header_bytes)


def test_a_good_header(frame_safetensors: Frame) -> None:
    second = {"dtype": "BF16", "shape": [1, 2], "data_offsets": [8, 12]}
    raw = frame_safetensors({"b": second, "__metadata__": {"format": "pt"}, "a": ENTRY}, bytes(12))
    tensors = read(raw)
    assert [tensor.name for tensor in tensors] == ["a", "b"]
    assert (tensors[1].begin, tensors[1].end) == (len(raw) - 4, len(raw))
    assert tensors[1].shape == (1, 2)


def test_padding_is_part_of_the_format(frame_safetensors: Frame) -> None:
    assert len(read(frame_safetensors(json.dumps({"a": ENTRY}).encode() + b"   ", bytes(8)))) == 1


@pytest.mark.parametrize(
    ("header", "body", "finding"),
    [
        ({"a": ENTRY}, bytes(7), "describes 8 bytes"),
        ({"a": ENTRY}, bytes(9), "describes 8 bytes"),
        ({"a": ENTRY, "b": ENTRY}, bytes(8), "overlaps"),
        ({"a": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12), "gap"),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), "ascending"),
        ({"a": {**ENTRY, "data_offsets": [0, 4]}}, bytes(4), "takes 8"),
        ({"a": {**ENTRY, "data_offsets": [-8, 0]}}, bytes(8), "ascending"),
        ({"a": {**ENTRY, "shape": [-2]}}, bytes(8), "shape"),
        ({"a": {**ENTRY, "shape": [True, 2]}}, bytes(8), "shape"),
        ({"a": {**ENTRY, "shape": [2.0]}}, bytes(8), "shape"),
        ({"a": {**ENTRY, "shape": [1] * 9}}, bytes(8), "shape"),
        ({"a": {**ENTRY, "shape": [2**62, 2**62]}}, bytes(8), "shape"),
        ({"a": {**ENTRY, "shape": [2**32, 2**32]}}, bytes(8), "takes"),
        ({"a": {**ENTRY, "dtype": 3}}, bytes(8), "dtype"),
        ({"a": {"dtype": "F32"}}, b"", "exactly"),
        ({"a": 1}, b"", "exactly"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ([], b"", "begin with"),
        (b'{"a":', b"", "valid JSON"),
        (b'{"a": {}, "a": {}}', b"", "duplicate"),
        (b'{"\xff": 1}', b"", "valid JSON"),
        (b'{"a":' + b"[" * 5000, b"", "valid JSON"),
        (b'{"a": NaN}', b"", "exactly"),
    ],
)
def test_damage_is_named(frame_safetensors: Frame, header: Any, body: bytes, finding: str) -> None:
    with pytest.raises(HeaderError, match=finding):
        read(frame_safetensors(header, body))


@pytest.mark.parametrize(
    ("raw", "finding"),
    [
        (b"", "0 bytes"),
        (b"1234567", "7 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "claims"),
        (struct.pack("<Q", 3) + b"{}", "claims"),
        (struct.pack("<Q", 20_000) + b"{" + b" " * 19_999, "allowed"),
    ],
)
def test_lengths_are_checked_first(raw: bytes, finding: str) -> None:
    with pytest.raises(HeaderError, match=finding):
        read(raw)


@given(st.binary(max_size=300))
def test_random_bytes(raw: bytes) -> None:
    with pytest.raises(HeaderError):
        read(raw)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "X9"]) | VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(-1, 40), max_size=3) | VALUES,
    }
)


@given(st.dictionaries(st.text(max_size=5), ENTRIES | VALUES, max_size=4), st.binary(max_size=64))
def test_any_header_is_tiled_or_refused(header: Any, body: bytes) -> None:
    raw_header = json.dumps(header).encode()
    raw = struct.pack("<Q", len(raw_header)) + raw_header + body
    try:
        tensors = read(raw)
    except HeaderError as error:
        assert error.findings
    else:
        assert sum(tensor.end - tensor.begin for tensor in tensors) == len(body)
