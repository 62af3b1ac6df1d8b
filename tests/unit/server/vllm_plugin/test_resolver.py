"""The resolver finds an expert's folder by its id, and nothing else."""

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from server.vllm_plugin.resolver import LibraryResolver


def store(root: Path, digest: str) -> Path:
    folder = root / digest
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return folder


async def test_an_expert_is_found_by_its_version(tmp_path: Path) -> None:
    folder = store(tmp_path, "1f3a9c02" + "0" * 56)
    request = await LibraryResolver(tmp_path).resolve_lora("base", "sql@1f3a9c02")
    assert request is not None
    assert (request.lora_name, request.lora_path) == ("sql@1f3a9c02", str(folder))


@pytest.mark.parametrize("name", ["sql", "sql@00000000", "../x@1f3a9c02", "sql@1f3a9c0", "base", "", "sql@1f3a9c02\n"])
async def test_anything_else_is_not_found(name: str, tmp_path: Path) -> None:
    store(tmp_path, "1f3a9c02" + "0" * 56)
    assert await LibraryResolver(tmp_path).resolve_lora("base", name) is None


async def test_an_ambiguous_version_is_refused(tmp_path: Path) -> None:
    store(tmp_path, "1f3a9c02" + "0" * 56)
    store(tmp_path, "1f3a9c02" + "1" * 56)
    assert await LibraryResolver(tmp_path).resolve_lora("base", "sql@1f3a9c02") is None
