"""Tuning: the loss against numpy, what is trained on and what is not, and the folder that comes of it."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from routers.embedders.factory import make_encoder
from routers.embedders.onnx import OnnxEncoder
from routers.embedders.tune import TuneConfig, draw_pairs, info_nce, split_examples, tune_encoder
from routers.errors import EmbedderError
from tests.unit.routers.embedders import tiny_bert

QUICK = TuneConfig(share=0.5, steps=40, num_pairs=6, learning_rate=3e-3, seed=3)


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("sentence_transformers")
    return importlib.import_module("torch")


@pytest.fixture
def model(tmp_path: Path, torch: Any) -> Path:
    facts = {
        "vocab_size": len(tiny_bert.WORDS),
        "intermediate_size": tiny_bert.INNER,
        "max_position_embeddings": tiny_bert.POSITIONS,
        "pad_token_id": 0,
    }
    folder = tmp_path / "tiny"
    tiny_bert.write_model(folder, **facts)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for idx, (path, kind) in enumerate(modules)
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": tiny_bert.HIDDEN, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def library(num_experts: int = 4, num_examples: int = 30) -> dict[str, list[str]]:
    """Each expert's prompts favour letters of its own among others."""
    rng = random.Random(0)
    letters = tiny_bert.WORDS[4:28]
    size = len(letters) // num_experts
    prompts = {}
    for number in range(num_experts):
        own = letters[number * size : (number + 1) * size]
        prompts[f"expert{number}"] = [
            " ".join(rng.choice(own if rng.random() < 0.6 else letters) for _ in range(8)) for _ in range(num_examples)
        ]
    return prompts


# -- the loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owners", [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [5, 5, 5, 5, 1]])
def test_info_nce_equals_its_formula(torch: Any, owners: list[int]) -> None:
    rng = np.random.default_rng(len(set(owners)))
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 5, 7)))
    losses = []
    for i in range(5):
        negatives = [j for j in range(5) if owners[j] != owners[i]]
        scores = np.exp(np.array([first[i] @ second[j] for j in [i, *negatives]]) / 0.05)
        losses.append(-np.log(scores[0] / scores.sum()))
    got = info_nce(torch, torch.from_numpy(first), torch.from_numpy(second), owners, 0.05)
    assert float(got) == pytest.approx(float(np.mean(losses)), rel=1e-9)


def test_experts_take_turns_in_a_batch() -> None:
    examples = library(5)
    split = split_examples(examples, TuneConfig(share=1.0))
    rng = random.Random(0)
    for num_pairs, per_expert in ((5, {1}), (10, {2}), (3, {1})):
        pairs, owners = draw_pairs(split, TuneConfig(num_pairs=num_pairs, bare_share=0), rng)
        assert set(Counter(owners).values()) == per_expert
        for (first, second), owner in zip(pairs, owners, strict=True):
            assert first != second
            assert {first, second} <= set(split.kept[split.trained[owner]])


@pytest.mark.parametrize(("bare_share", "low", "high"), [(0.0, 0, 0), (0.5, 400, 600), (1.0, 1000, 1000)])
def test_a_share_of_the_prompts_comes_without_template(bare_share: float, low: int, high: int) -> None:
    examples = {name: [f"Please say {name} {text}" for text in texts] for name, texts in library(2).items()}
    config = TuneConfig(share=1.0, num_pairs=500, bare_share=bare_share)
    pairs, owners = draw_pairs(split_examples(examples, config), config, random.Random(0))
    bare = [not text.startswith("Please") for pair in pairs for text in pair]
    assert low <= sum(bare) <= high
    for pair, owner in zip(pairs, owners, strict=True):
        assert all(any(text in example for example in examples[f"expert{owner}"]) for text in pair)


def test_examples_left_out_are_not_trained_on() -> None:
    split = split_examples(
        library(3, 30) | {"blank": [" "], "same": ["a", "a"], "many": [f"a {n}" for n in range(500)]}, QUICK
    )
    for expert, texts in split.left_out.items():
        assert not set(texts) & set(split.kept[expert])
    assert {expert: len(texts) for expert, texts in split.left_out.items()} == {
        "expert0": 6,
        "expert1": 6,
        "expert2": 6,
        "many": 20,
        "same": 0,
    }
    assert "same" not in split.trained


@pytest.mark.parametrize(("share", "num"), [(0.4, 4), (1.0, 10), (0.01, 2)])
def test_the_share_of_experts_is_kept_and_chosen_by_the_seed(share: float, num: int) -> None:
    examples = {f"e{number}": ["a", "b", "c"] for number in range(10)}
    chosen = {split_examples(examples, TuneConfig(share=share, seed=seed)).trained for seed in range(20)}
    assert {len(trained) for trained in chosen} == {num}
    assert (len(chosen) > 1) == (num < 10)
    assert split_examples(dict(reversed(examples.items())), TuneConfig(share=share)).trained in chosen


# -- tuning -------------------------------------------------------------------------------------------------------


def test_tuning_lowers_the_loss_and_writes_an_encoder(model: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    examples = library()
    report = tune_encoder(model, examples, tmp_path / "new" / "out", QUICK, lambda *step: steps.append(step))
    assert report.after.loss < 0.8 * report.before.loss
    assert len(report.trained) == 2
    assert sorted(report.trained + report.untrained) == sorted(examples)
    assert report.after.accuracy_trained is not None and report.before.accuracy_trained is not None
    assert report.after.accuracy_trained >= report.before.accuracy_trained
    assert report.after.accuracy_untrained is not None and 0 <= report.after.accuracy_untrained <= 1
    assert steps == [(done, 42) for done in range(1, 43)]
    noted = json.loads((tmp_path / "new" / "out" / "tune.json").read_text())
    assert tuple(noted["report"]["trained"]) == report.trained
    assert noted["config"]["seed"] == 3

    encoder = make_encoder(str(tmp_path / "new" / "out"), tmp_path / "cache")
    assert isinstance(encoder, OnnxEncoder)
    rows = encoder.encode([text for texts in examples.values() for text in texts])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    before = make_encoder(str(model), tmp_path / "cache").encode(["a b c"])
    assert float((encoder.encode(["a b c"]) @ before.T)[0, 0]) < 0.999
    assert len(encoder.token_ids("a " * 40)) == 20, "the window is that of the model"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_a_seed_gives_the_same_encoder_again(model: Path, tmp_path: Path, torch: Any) -> None:
    def weights(out: str, seed: int) -> dict[str, Any]:
        config = TuneConfig(share=0.5, steps=3, num_pairs=4, seed=seed)
        tune_encoder(model, library(), tmp_path / out, config)
        return dict(load_file(tmp_path / out / "model.safetensors"))

    torch.manual_seed(1)
    first = weights("first", 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = weights("again", 0), weights("other", 1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is left alone"


@pytest.mark.slow
def test_untrained_experts_do_not_reach_the_weights(model: Path, tmp_path: Path) -> None:
    examples = library()
    trained = split_examples(examples, QUICK).trained
    changed = {name: texts if name in trained else texts[::-1] for name, texts in examples.items()}
    changed = {name: [t if name in trained else t + " z" for t in texts] for name, texts in changed.items()}
    tune_encoder(model, examples, tmp_path / "one", QUICK)
    tune_encoder(model, changed, tmp_path / "two", QUICK)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


# -- errors -------------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(EmbedderError, match="exists and will not be overwritten"):
        tune_encoder("model", library(), out, QUICK)
    assert list(out.iterdir()) == []
    out.rmdir()
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(EmbedderError, match="exists"):
        tune_encoder("model", library(), out, QUICK)


def test_a_tuning_that_fails_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(EmbedderError, match="No space left"):
        tune_encoder(model, library(), tmp_path / "out", QUICK)
    with pytest.raises(EmbedderError, match="lower learning rate"):
        tune_encoder(model, library(), tmp_path / "out", TuneConfig(learning_rate=float("inf")))
    with pytest.raises(EmbedderError, match="cannot load"):
        tune_encoder(tmp_path / "absent" / "a" / "b", library(), tmp_path / "out", QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_loaded(tmp_path: Path, torch: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbedderError, match="choose another folder"):
        tune_encoder("no such model", library(), tmp_path / "file" / "out", QUICK)


@pytest.mark.parametrize(
    "examples", [{}, {"a": ["one", "two"]}, {"a": ["one", "two"], "b": ["one"]}, {"a": ["x", "x"], "b": ["y", "z"]}]
)
def test_too_few_examples_say_how_to_add_them(tmp_path: Path, examples: dict[str, list[str]]) -> None:
    with pytest.raises(EmbedderError, match="--examples-file"):
        tune_encoder("model", examples, tmp_path / "out", QUICK)


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.0},
        {"share": 1.1},
        {"steps": 0},
        {"num_pairs": 1},
        {"temperature": 0},
        {"max_tokens": 2},
        {"bare_share": 2},
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(EmbedderError, match=str(next(iter(options.values())))):
        tune_encoder("model", library(), tmp_path / "out", TuneConfig(**options))


def test_missing_packages_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EmbedderError, match="pip install sentence-transformers"):
        tune_encoder("model", library(), tmp_path / "out", QUICK)
    assert list(tmp_path.iterdir()) == []
