"""Validation: can this folder be served as an adapter on this base? Reports every reason why not, each with a fix.

`content_store` copies the files first and this module checks the copy, so the checked bytes are the stored bytes. The
order is files, config, header, names and shapes, and only then the tensors' values. Nothing is executed, and only
safetensors files are read.

The content hash of an adapter is ``sha256(normalised config bytes + hex sha256 of adapter_model.safetensors)``. So the
same training result has the same version, however its config was written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.checks.module_patterns import PatternError, resolve_patterns, select_modules
from adapters_registry.checks.peft_config import LoraSettings, normalised_config, read_config
from adapters_registry.checks.safetensors_header import HeaderError, TensorEntry, read_header
from adapters_registry.checks.tensors import LoraPair, check_shapes, check_values, pair_tensors
from adapters_registry.disk.layout import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE, content_hash
from adapters_registry.disk.safe_files import NotRegular, SourceFolder, digest
from adapters_registry.errors import InvalidAdapter, Problem, quote
from adapters_registry.limits import AdapterLimits

_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"})
_HARMLESS_SUFFIXES = frozenset(
    {
        "",
        ".jinja",
        ".jpeg",
        ".jpg",
        ".json",
        ".jsonl",
        ".log",
        ".md",
        ".model",
        ".png",
        ".rst",
        ".svg",
        ".txt",
    }
    | {".yaml", ".yml"}
)
_MISSING_FIX = f"An adapter is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, as PEFT's save_pretrained writes it."


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Facts about a valid adapter.

    Attributes:
        rank: Largest rank of any module.
        alpha: `lora_alpha` of the config.
        target_modules: Short names of the adapted modules, sorted.
        size_bytes: Size of the weights' file.
        sha256: Content hash: SHA-256 of the normalised config and the weights' SHA-256.
        base_model: The base that the config names, without host paths; may be empty.
        config: The normalised config for the store.
        weights_sha256: SHA-256 of the weights' file.
        warnings: What is unusual but can be served.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    size_bytes: int
    sha256: str
    base_model: str
    config: bytes
    weights_sha256: str
    warnings: tuple[str, ...] = ()


def check_listing(source: SourceFolder, limits: AdapterLimits) -> list[Problem]:
    """Return the problems with the names of a folder's files. Subfolders and harmless documents are ignored."""
    entries = source.entries(limits.max_archive_files)
    if len(entries) > limits.max_archive_files:
        fix = "Give the adapter's own folder."
        return [Problem("folder", f"has more than {limits.max_archive_files} entries", fix)]
    problems = []
    for name, is_folder in entries:
        suffix = PurePath(name).suffix.lower()
        if is_folder or name in ADAPTER_FILES or name.startswith("."):
            continue
        if suffix in _PICKLE_SUFFIXES:
            what = "may hold code (pickle) and is refused by its name: safetensors only"
            problems.append(Problem(quote(name), what, "Remove it; save weights with safe_serialization=True."))
        elif suffix == ".safetensors":
            problems.append(Problem(quote(name), "is not part of a LoRA adapter", f"Only {WEIGHTS_FILE} is served."))
        elif suffix not in _HARMLESS_SUFFIXES:
            problems.append(Problem(quote(name), "is not part of an adapter", "Remove it from the folder."))
    return problems


def validate_adapter(
    folder: Path, base: BaseSpec | None, limits: AdapterLimits, *, found: Sequence[Problem] = ()
) -> AdapterFacts:
    """Check the adapter in `folder`; `found` are known problems, which are reported with the others.

    Without a `base`, modules and shapes are only checked against the config. Raises InvalidAdapter with all problems.
    """
    try:
        with SourceFolder(folder) as source:
            return _Validation(base, limits, [*found, *check_listing(source, limits)]).run(source)
    except (NotRegular, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidAdapter([Problem(quote(folder), str(reason), _MISSING_FIX)]) from None


class _Validation:
    """One validation of one folder; collects problems as it goes."""

    def __init__(self, base: BaseSpec | None, limits: AdapterLimits, problems: list[Problem]) -> None:
        self._base = base
        self._limits = limits
        self._problems = problems

    def run(self, source: SourceFolder) -> AdapterFacts:
        settings = self._read_config(source)
        weights = self._open(source, WEIGHTS_FILE, self._limits.max_adapter_bytes)
        if weights is None:
            raise InvalidAdapter(self._problems)
        with weights:
            size_bytes = os.fstat(weights.fileno()).st_size
            pairing = pair_tensors(self._read_header(weights, size_bytes))
            self._problems.extend(pairing.problems)
            ranks, alphas = self._check_modules(settings, pairing.pairs)
            self._problems.extend(check_values(weights, pairing.pairs))
            if settings is None or ranks is None or self._problems:
                raise InvalidAdapter(self._problems)
            weights.seek(0)
            weights_sha256 = digest(weights)
        config = normalised_config(settings, ranks, alphas)
        return AdapterFacts(
            rank=max(ranks.values()),
            alpha=settings.alpha,
            target_modules=tuple(sorted({module.rpartition(".")[2] for module in ranks})),
            size_bytes=size_bytes,
            sha256=content_hash(config, weights_sha256),
            base_model=settings.base_model,
            config=config,
            weights_sha256=weights_sha256,
            warnings=(*settings.warnings, *self._base_warnings(settings)),
        )

    def _open(self, source: SourceFolder, name: str, max_bytes: int) -> BinaryIO | None:
        try:
            stream = source.open(name)
        except FileNotFoundError:
            self._problems.append(Problem(name, "is missing", _MISSING_FIX))
            return None
        except NotRegular as error:
            self._problems.append(Problem(name, str(error), "Put a regular file there; links are not followed."))
            return None
        except OSError as error:
            self._problems.append(Problem(name, error.strerror or str(error), "Make it readable by the server."))
            return None
        size_bytes = os.fstat(stream.fileno()).st_size
        if size_bytes <= max_bytes:
            return stream
        stream.close()
        what = f"has {size_bytes} bytes, more than the {max_bytes} allowed"
        self._problems.append(Problem(name, what, "Train with a smaller rank or fewer modules, or raise the limit."))
        return None

    def _read_config(self, source: SourceFolder) -> LoraSettings | None:
        stream = self._open(source, CONFIG_FILE, self._limits.max_config_bytes)
        if stream is None:
            return None
        with stream:
            settings, problems = read_config(stream.read(self._limits.max_config_bytes))
        self._problems.extend(problems)
        if settings is not None and self._base_warnings(settings) and not self._limits.allow_other_base_name:
            fix = "Register it with the gateway that serves its base."
            self._problems.append(Problem(CONFIG_FILE, self._base_warnings(settings)[0], fix))
        return settings

    def _base_warnings(self, settings: LoraSettings) -> tuple[str, ...]:
        """Return a warning if the adapter names another base; only the last part of the name is compared."""
        if self._base is None or not settings.base_model:
            return ()
        theirs, ours = (name.rpartition("/")[2].lower() for name in (settings.base_model, self._base.name))
        if theirs == ours:
            return ()
        return (f"the adapter names the base {quote(settings.base_model)}; this library's is {quote(self._base.name)}",)

    def _read_header(self, weights: BinaryIO, size_bytes: int) -> tuple[TensorEntry, ...]:
        try:
            tensors = read_header(weights, size_bytes, self._limits.max_header_bytes)
        except HeaderError as error:
            fix = "Save or send the file again; it must be a complete safetensors file."
            self._problems.extend(Problem(WEIGHTS_FILE, finding, fix) for finding in error.findings)
            return ()
        if not tensors:
            self._problems.append(Problem(WEIGHTS_FILE, "holds no tensors", "Send the trained adapter."))
        return tensors

    def _check_modules(
        self, settings: LoraSettings | None, pairs: Mapping[str, LoraPair]
    ) -> tuple[dict[str, int] | None, dict[str, float]]:
        """Compare the file's modules with those of config and base; returns the rank and alpha of each module."""
        ranks: dict[str, int] | None = None
        alphas: dict[str, float] = {}
        if settings is not None:
            try:
                ranks = resolve_patterns(settings.rank_pattern, settings.rank, pairs)
                alphas = resolve_patterns(settings.alpha_pattern, settings.alpha, pairs)
                if pairs:
                    self._check_selection(settings, pairs)
            except PatternError as error:
                fix = "List plain module names instead of a regular expression."
                self._problems.append(Problem(CONFIG_FILE, str(error), fix))
        self._problems.extend(check_shapes(pairs, ranks, self._base, self._limits.max_rank))
        return ranks or None, alphas

    def _check_selection(self, settings: LoraSettings, pairs: Mapping[str, LoraPair]) -> None:
        """Check that the file holds exactly the modules that the config selects in the base."""
        if settings.rule is None:
            return
        known = set(self._base.modules) if self._base else set(pairs)
        selected = select_modules(settings.rule, sorted(known))
        for module in sorted(selected - set(pairs)):
            what = "target_modules selects it, but the file has no tensors for it"
            self._problems.append(Problem(f"{WEIGHTS_FILE}: {quote(module)}", what, "Send the complete file."))
        for module in sorted((set(pairs) & known) - selected):
            what = "the file adapts it, but target_modules does not select it"
            fix = "Send weights and config of the same training."
            self._problems.append(Problem(f"{WEIGHTS_FILE}: {quote(module)}", what, fix))
