"""The header of a safetensors file, read without trusting it and without reading a tensor.

Layout of the format: 8 bytes little-endian length N, N bytes of JSON ``{name: {dtype, shape, data_offsets}}`` (perhaps
padded with spaces), then the tensors' bytes. `data_offsets` are relative to the end of the header and must tile the
rest of the file without gap or overlap.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from adapters_registry.errors import quote

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}

_LENGTH_BYTES = 8
_MAX_DIMS = 8
_MAX_EXTENT = 2**40
_MAX_REPORTED = 20


class HeaderError(Exception):
    """The header is damaged; `findings` lists everything that is wrong with it."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("; ".join(findings))
        self.findings = findings


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header describes it; `begin` and `end` are positions in the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(stream: BinaryIO, file_bytes: int, max_header_bytes: int) -> tuple[TensorEntry, ...]:
    """Read and check the header at the start of `stream`; returns the tensors in file order. Raises HeaderError."""
    prefix = stream.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise HeaderError([f"the file has {len(prefix)} bytes, less than the shortest safetensors file"])
    (header_bytes,) = struct.unpack("<Q", prefix)
    if header_bytes > file_bytes - _LENGTH_BYTES:
        raise HeaderError([f"the header claims {header_bytes} bytes in a file of {file_bytes}"])
    if header_bytes > max_header_bytes:
        raise HeaderError([f"the header has {header_bytes} bytes, more than the {max_header_bytes} allowed"])
    raw = stream.read(header_bytes)
    if len(raw) != header_bytes:
        raise HeaderError(["the file ends inside the header"])
    data_start = _LENGTH_BYTES + header_bytes
    return _parse(_load(raw), data_start, file_bytes - data_start)


def _load(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise HeaderError(["the header does not begin with '{': this is not a safetensors file"])
    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise HeaderError([f"the header is not valid JSON ({type(error).__name__}: {quote(error)})"]) from None
    if not isinstance(parsed, dict):
        raise HeaderError(["the header is not a JSON object"])
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object with unique keys; with duplicates, two readers could see different tensors of one name."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _parse(parsed: dict[str, Any], data_start: int, data_bytes: int) -> tuple[TensorEntry, ...]:
    findings: list[str] = []
    tensors: list[TensorEntry] = []
    for name, description in parsed.items():
        if name == "__metadata__":
            findings.extend(_metadata_findings(description))
            continue
        finding = _entry_finding(description)
        if finding is not None:
            findings.append(f"tensor {quote(name)}: {finding}")
            if len(findings) >= _MAX_REPORTED:
                break
            continue
        begin, end = description["data_offsets"]
        shape = tuple(description["shape"])
        tensors.append(TensorEntry(name, description["dtype"], shape, begin + data_start, end + data_start))
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    if not findings:  # with an entry missing, the tiling check would only repeat that
        findings.extend(_tiling_findings(tensors, data_start, data_bytes))
    if findings:
        raise HeaderError(findings[:_MAX_REPORTED])
    return tuple(tensors)


def _metadata_findings(metadata: Any) -> list[str]:
    if isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()):
        return []
    return ["__metadata__ is not an object of texts"]


def _entry_finding(description: Any) -> str | None:
    """Return what is wrong with one tensor's description by itself."""
    if not isinstance(description, dict) or set(description) != {"dtype", "shape", "data_offsets"}:
        return "its description must have exactly dtype, shape and data_offsets"
    dtype, shape, offsets = description["dtype"], description["shape"], description["data_offsets"]
    if not isinstance(dtype, str):
        return "its dtype is not a text"
    if not _is_extents(shape) or len(shape) > _MAX_DIMS:
        return "its shape is not a short list of sizes"
    if not _is_extents(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return "its data_offsets are not two ascending positions"
    if dtype in DTYPE_BYTES:
        expected = math.prod(shape) * DTYPE_BYTES[dtype]
        if offsets[1] - offsets[0] != expected:
            return f"it has {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes {expected}"
    return None


def _is_extents(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _MAX_EXTENT for item in value)


def _tiling_findings(tensors: list[TensorEntry], data_start: int, data_bytes: int) -> list[str]:
    """Check that the tensors, sorted by position, cover the data exactly once."""
    findings = []
    position = data_start
    for tensor in tensors:
        if tensor.begin != position:
            relation = "overlaps the one before it" if tensor.begin < position else "leaves a gap before it"
            findings.append(f"tensor {quote(tensor.name)} {relation}")
        position = max(position, tensor.end)
    if position != data_start + data_bytes:
        findings.append(f"the header describes {position - data_start} bytes of data, the file has {data_bytes}")
    return findings
