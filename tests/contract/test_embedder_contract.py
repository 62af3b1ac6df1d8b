"""What every encoder promises, and every embedder made of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from routers.embedders.base import Embedder, Encoder
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.factory import make_encoder
from tests.unit.routers.embedders import tiny_bert

TEXTS = [
    "Convert the date to ISO.",
    "a",
    "",
    "  \n\t ",
    "héllo wörld 你好 🙂",
    "lone \ud800 surrogate \x00 and null",
    "def f(x):\n    return x ** 2",
    "a rather long text " * 200,
    "Convert the date to ISO.",
]


@pytest.fixture(
    scope="module",
    params=[
        "hashing",
        "hashing-32",
        "tiny",
        pytest.param("all-MiniLM-L6-v2", marks=pytest.mark.model),
        pytest.param("sentence-transformers", marks=pytest.mark.model),
    ],
)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    folder: Path = tmp_path_factory.mktemp("encoder")
    made: Encoder
    if request.param == "tiny":
        tiny_bert.write_model(folder / "tiny")
        made = make_encoder(str(folder / "tiny"), folder)
    elif request.param == "sentence-transformers":
        from routers.embedders.onnx_export import packaged_model
        from routers.embedders.sentence_transformer import SentenceTransformerEncoder

        made = SentenceTransformerEncoder(packaged_model() or "", device="cpu")
    else:
        made = make_encoder(request.param, folder)
    yield made
    made.close()


def test_is_an_encoder_with_a_name(encoder: Encoder) -> None:
    assert isinstance(encoder, Encoder)
    assert encoder.name
    assert encoder.dim >= 2


def test_any_texts_give_finite_unit_rows(encoder: Encoder) -> None:
    rows = encoder.encode(TEXTS)
    assert rows.shape == (len(TEXTS), encoder.dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_no_texts_give_no_rows(encoder: Encoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dim)


def test_is_deterministic_and_blind_to_company(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS)
    np.testing.assert_array_equal(together, encoder.encode(TEXTS))
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    backwards = encoder.encode(TEXTS[::-1])[::-1]
    np.testing.assert_allclose(alone, together, atol=1e-4)
    np.testing.assert_allclose(backwards, together, atol=1e-4)


async def test_serves_as_an_embedder(encoder: Encoder) -> None:
    class Lent:
        """The encoder, kept open for the tests to come."""

        name, dim, encode = encoder.name, encoder.dim, staticmethod(encoder.encode)

        def close(self) -> None:
            """Nothing to do."""

    embedder = BatchingEmbedder(Lent())
    assert isinstance(embedder, Embedder)
    assert (embedder.name, embedder.dim) == (encoder.name, encoder.dim)
    expected = encoder.encode(TEXTS)
    rows = await embedder.embed(TEXTS)
    np.testing.assert_allclose(rows, expected, atol=1e-4)
    several = await asyncio.gather(*(embedder.embed([text]) for text in TEXTS))
    np.testing.assert_array_equal(np.concatenate(several), rows)
    cached = embedder.cached(TEXTS[0])
    assert cached is not None
    np.testing.assert_array_equal(cached, rows[0])
    assert (await embedder.embed([])).shape == (0, encoder.dim)
    await embedder.close()
