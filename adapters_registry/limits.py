"""Bounds on what the registry accepts, all in one value object."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """Bounds on adapters and on the archives that bring them.

    Attributes:
        max_rank: Largest LoRA rank, of any module; the engine's `--max-lora-rank`.
        max_adapter_bytes: Largest `adapter_model.safetensors`.
        max_header_bytes: Largest safetensors header; 8 MiB describe about 40,000 tensors.
        max_config_bytes: Largest `adapter_config.json`.
        max_archive_files: Most entries in an archive, and most files in a folder.
        max_unpacked_bytes: Largest sum of an archive's contents, as declared and as really unpacked.
        allow_other_base_name: Accept an adapter whose config names another base, if every shape fits (with a warning).
    """

    max_rank: int = 64
    max_adapter_bytes: int = 1024 * MIB
    max_header_bytes: int = 8 * MIB
    max_config_bytes: int = MIB
    max_archive_files: int = 256
    max_unpacked_bytes: int = 1280 * MIB
    allow_other_base_name: bool = True
