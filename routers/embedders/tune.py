"""Fine-tuning of a sentence encoder on a library, so that prompts of one expert are near each other.

LoraRetriever trains its retriever this way (Zhao et al., 2024, arXiv:2402.09997): InfoNCE on a share of the experts,
two fifths in the paper; the others are only retrieved. In a batch of n pairs (x_i, y_i), each pair is two prompts of
one expert e_i, and u(·) is the encoder's unit vector:

    loss = -1/n Σ_i log( exp(u(x_i)·u(y_i) / τ) / Σ_{j = i or e_j ≠ e_i} exp(u(x_i)·u(y_j) / τ) )

The experts take turns in a batch. An expert has several pairs only if there are more pairs than experts, and these are
not negatives of each other. The authors tune INSTRUCTOR with an instruction before each prompt; here it is any model
that sentence-transformers opens, without an instruction. Half of the prompts are shown without their expert's template
(`routers.text.templates`). The template alone distinguishes the experts, so an encoder that always saw it would learn
its words and ignore the words of people who do not use it.

The result is a sentence-transformers folder, written whole or not at all, which `make_encoder` opens. It contains the
report, `tune.json`. torch and sentence-transformers are imported when something is tuned. A seed reproduces the weights
on the same machine with the same number of threads. Cost: a step embeds 2n prompts and propagates back through them.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapters_registry.disk.safe_files import publish_folder
from routers.base import Matrix, Progress, no_progress
from routers.embedders.base import clean_text, unit_rows
from routers.embedders.factory import DEFAULT
from routers.errors import EmbedderError
from routers.text.templates import bare_texts

NUM_EXAMPLES = 20
"""Number of examples in the mean that represents an expert, as in `lora_retriever`."""

_MAX_LEFT_OUT = 20
_NUM_LOSS_BATCHES = 8
_WARM_UP = 0.1
_MAX_CHARS = 16_384

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """Options of the tuning; the share is the paper's."""

    share: float = 0.4
    """Share of the experts that are trained on, chosen by the seed; at least two experts."""
    steps: int = 200
    num_pairs: int = 16
    """Number of pairs in a batch."""
    learning_rate: float = 2e-5
    temperature: float = 0.05
    bare_share: float = 0.5
    """Share of the prompts that are shown without their expert's template; the paper has 0."""
    max_tokens: int = 96
    """Length to which prompts are cut while tuning; the window of the finished encoder does not change."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """The loss on pairs of trained experts, and how many held-out examples are nearest to their own expert's mean.

    Accuracies are among all experts, and None if no examples were held out.
    """

    loss: float
    accuracy_trained: float | None
    accuracy_untrained: float | None


@dataclass(frozen=True, slots=True)
class TuneReport:
    """The options of a tuning and the measurements before and after it."""

    trained: tuple[str, ...]
    untrained: tuple[str, ...]
    before: Measured
    after: Measured


@dataclass(frozen=True, slots=True)
class Split:
    """Each expert's examples for training, the same without template, and up to a fifth that is held out."""

    kept: dict[str, list[str]]
    bare: dict[str, tuple[str, ...]]
    left_out: dict[str, list[str]]
    trained: tuple[str, ...]


def tune_encoder(
    model: str | Path,
    examples: Mapping[str, Sequence[str]],
    out: Path,
    config: TuneConfig | None = None,
    progress: Progress = no_progress,
) -> TuneReport:
    """Tune `model` (a folder or a name) on prompts by expert and write the encoder to the new folder `out`.

    Raises:
        EmbedderError: A package is missing, `out` exists, too few examples, a model that cannot be loaded or tuned.
    """
    config = config or TuneConfig()
    _check(config)
    split = split_examples(examples, config)
    torch, library = _packages()
    with _new_folder(out) as temporary, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = _load(library, model)
        window = encoder.max_seq_length
        encoder.max_seq_length = min(window or config.max_tokens, config.max_tokens)
        before = _measure(torch, encoder, split, config)
        progress(1, config.steps + 2)
        _train(torch, encoder, split, config, lambda done: progress(done + 1, config.steps + 2))
        after = _measure(torch, encoder, split, config)
        untrained = tuple(expert for expert in split.kept if expert not in split.trained)
        report = TuneReport(split.trained, untrained, before, after)
        encoder.max_seq_length = window
        encoder.save_pretrained(str(temporary.path), create_model_card=False)
        facts = {"model": str(model), "config": asdict(config), "report": asdict(report)}
        (temporary.path / "tune.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        temporary.keep()
        progress(config.steps + 2, config.steps + 2)
    return report


# -- training data -----------------------------------------------------------------------------------------------


def split_examples(examples: Mapping[str, Sequence[str]], config: TuneConfig) -> Split:
    """Hold out examples for measuring, and choose the experts to train on; raises `EmbedderError`."""
    rng = random.Random(config.seed)  # noqa: S311
    kept, left_out = {}, {}
    for expert in sorted(examples):
        texts = [clean_text(text[:_MAX_CHARS]) for text in dict.fromkeys(examples[expert]) if text.strip()]
        rng.shuffle(texts)
        num_out = min(_MAX_LEFT_OUT, len(texts) // 5)
        if texts:
            left_out[expert], kept[expert] = texts[:num_out], texts[num_out:]
    able = [expert for expert, texts in kept.items() if len(texts) >= 2]
    if len(able) < 2:
        raise EmbedderError(
            f"tuning needs two experts with at least two different examples each; there are {len(able)}",
            "give experts examples: moergate adapters add … --examples-file FILE",
        )
    num = min(len(able), max(2, round(config.share * len(kept))))
    bare = {expert: bare_texts(texts) for expert, texts in kept.items()}
    return Split(kept, bare, left_out, tuple(sorted(rng.sample(able, num))))


def draw_pairs(split: Split, config: TuneConfig, rng: random.Random) -> tuple[list[Pair], list[int]]:
    """Draw pairs of two examples of one expert, with the expert's number; the trained experts take turns."""
    order = rng.sample(range(len(split.trained)), len(split.trained))
    owners = [order[number % len(order)] for number in range(config.num_pairs)]

    def draw(expert: str) -> Pair:
        whole, bare = split.kept[expert], split.bare[expert]
        first, second = rng.sample(range(len(whole)), 2)
        return (
            bare[first] if rng.random() < config.bare_share else whole[first],
            bare[second] if rng.random() < config.bare_share else whole[second],
        )

    return [draw(split.trained[owner]) for owner in owners], owners


# -- the loss and the loop ----------------------------------------------------------------------------------------


def info_nce(torch: Any, first: Any, second: Any, owners: Sequence[int], temperature: float) -> Any:
    """Compute the InfoNCE loss, a scalar, from two (n, dim) tensors of unit rows and the pairs' experts."""
    who = torch.tensor(list(owners), device=first.device)
    own = (who[:, None] == who[None, :]) & ~torch.eye(len(who), dtype=torch.bool, device=first.device)
    cosines = (first @ second.T).masked_fill(own, float("-inf"))
    return torch.nn.functional.cross_entropy(cosines / temperature, torch.arange(len(who), device=first.device))


def _loss(torch: Any, encoder: Any, split: Split, config: TuneConfig, rng: random.Random) -> Any:
    pairs, owners = draw_pairs(split, config, rng)
    tokenize = getattr(encoder, "preprocess", None) or encoder.tokenize  # `tokenize` before sentence-transformers 5
    sides = []
    for texts in zip(*pairs, strict=True):
        tokens = {k: v.to(encoder.device) if hasattr(v, "to") else v for k, v in tokenize(list(texts)).items()}
        sides.append(torch.nn.functional.normalize(encoder(tokens)["sentence_embedding"], dim=1))
    return info_nce(torch, sides[0], sides[1], owners, config.temperature)


def _train(torch: Any, encoder: Any, split: Split, config: TuneConfig, stepped: Callable[[int], None]) -> None:
    """Train with AdamW; the rate rises over the first tenth of the steps and then falls linearly to zero."""
    rng = random.Random(config.seed)  # noqa: S311
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=config.learning_rate)
    warm_up = max(1, round(_WARM_UP * config.steps))
    encoder.train()
    for step in range(config.steps):
        rate = min((step + 1) / warm_up, (config.steps - step) / max(1, config.steps - warm_up))
        optimiser.param_groups[0]["lr"] = config.learning_rate * rate
        loss = _loss(torch, encoder, split, config, rng)
        if not torch.isfinite(loss):
            raise EmbedderError(f"the loss is not finite at step {step + 1}", "use a lower learning rate")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        stepped(step + 1)
    encoder.eval()


# -- measurement --------------------------------------------------------------------------------------------------


def _measure(torch: Any, encoder: Any, split: Split, config: TuneConfig) -> Measured:
    """Measure the loss without dropout on the same few batches, and how well held-out examples find their expert."""
    encoder.eval()
    rng = random.Random(config.seed + 1)  # noqa: S311
    with torch.inference_mode():
        losses = [float(_loss(torch, encoder, split, config, rng)) for _ in range(_NUM_LOSS_BATCHES)]

    def embed(texts: Sequence[str]) -> Matrix:
        return unit_rows(np.asarray(encoder.encode(list(texts), show_progress_bar=False), np.float32))

    means = unit_rows(np.stack([embed(texts[:NUM_EXAMPLES]).mean(axis=0) for texts in split.kept.values()]))
    right: dict[bool, list[bool]] = {True: [], False: []}
    for number, (expert, texts) in enumerate(split.left_out.items()):
        if texts:
            nearest = (embed(texts) @ means.T).argmax(axis=1)
            right[expert in split.trained] += (nearest == number).tolist()
    accuracies = {key: float(np.mean(values)) if values else None for key, values in right.items()}
    return Measured(float(np.mean(losses)), accuracies[True], accuracies[False])


# -- packages, the model, the folder ------------------------------------------------------------------------------


def _check(config: TuneConfig) -> None:
    for holds, what in (
        (0 < config.share <= 1, f"the share must be above 0 and at most 1, not {config.share}"),
        (config.steps >= 1, f"there must be at least one step, not {config.steps}"),
        (config.num_pairs >= 2, f"a batch needs at least two pairs, not {config.num_pairs}"),
        (config.learning_rate > 0, f"the learning rate must be above 0, not {config.learning_rate}"),
        (config.temperature > 0, f"the temperature must be above 0, not {config.temperature}"),
        (0 <= config.bare_share <= 1, f"the share of bare prompts must be in [0, 1], not {config.bare_share}"),
        (config.max_tokens >= 8, f"max_tokens must be at least 8, not {config.max_tokens}"),
    ):
        if not holds:
            raise EmbedderError(what)


def _packages() -> tuple[Any, Any]:
    """Import torch and sentence_transformers; raises `EmbedderError` if one is not installed."""
    try:
        return importlib.import_module("torch"), importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise EmbedderError(
            f"tuning an encoder needs torch and sentence-transformers ({error})", "pip install sentence-transformers"
        ) from error


def _load(library: Any, model: str | Path) -> Any:
    source: str | Path = model
    if str(model) in (DEFAULT, f"sentence-transformers/{DEFAULT}"):
        from routers.embedders.onnx_export import packaged_model

        source = packaged_model() or model
    try:
        return library.SentenceTransformer(os.path.expanduser(source))
    except Exception as error:
        raise EmbedderError(
            f"sentence-transformers cannot load {str(model)!r} ({error})", "check the folder or the hub name"
        ) from error


class _new_folder:
    """A temporary folder next to `out`; `keep()` renames it to `out`, otherwise it is removed when the block ends."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.path = out.with_name(f".{out.name}.{os.getpid()}")

    def __enter__(self) -> _new_folder:
        self._refuse_existing()
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir()
        except OSError as error:
            raise EmbedderError(f"{self._out} cannot be written ({error})", "choose another folder") from error
        return self

    def keep(self) -> None:
        """Flush every file to disk and rename the folder."""
        self._refuse_existing()
        try:
            publish_folder(self.path, self._out)
        except OSError as error:
            raise EmbedderError(f"{self._out} cannot be written ({error})", "choose another folder") from error

    def __exit__(self, *_error: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _refuse_existing(self) -> None:
        if os.path.lexists(self._out):
            raise EmbedderError(f"{self._out} exists and will not be overwritten", "choose another folder or remove it")
