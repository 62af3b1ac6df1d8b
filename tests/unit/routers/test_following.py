"""A policy that follows its library is what a fit from nothing makes of it, and costs only what is new."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from routers.base import Artefact, FitData, LibraryExpert, Matrix, RouteQuery, Router, no_progress
from routers.embedders.hashing import HashingEncoder
from routers.fitting import fit_data
from routers.methods import tfidf, two_part
from routers.registry import make_config, router_class
from routers.text import pair_tfidf, templates
from routers.text.segments import parts_of
from routers.text.templates import bare_texts

ENCODER = HashingEncoder(48)
CASES: list[tuple[str, dict[str, object]]] = [
    ("knn", {}),
    ("centroid", {}),
    ("lora_retriever", {}),
    ("adapter_soup", {}),
    ("adapter_soup", {"selection_by": "gmm"}),
    ("airoboros", {}),
    ("molora", {}),
    ("molora", {"num_centres": 2}),
    ("arrow", {}),
    ("retrieval_of_experts", {}),
    ("what_the_weight", {}),
    ("what_the_weight", {"scoring": "tfidf"}),
    ("tfidf", {}),
    ("tfidf", {"max_terms": 30}),
    ("tfidf", {"analyzer": "char_wb", "longest": 4}),
    ("two_part", {}),
    ("two_part", {"max_examples": 5}),
]
WORDS = [a + b for a in ("ka", "li", "mo", "nu", "pe", "ru", "so") for b in ("bat", "cor", "dil", "fen", "gop")]


class Encode:
    """An embedder that says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Matrix:
        self.asked += texts
        return ENCODER.encode(texts)


def forget() -> None:
    """As a new process begins."""
    tfidf._term_counts.cache_clear()
    pair_tfidf._term_counts.cache_clear()
    templates._take_apart.cache_clear()
    two_part._cues_and_segments.cache_clear()
    two_part._pieces.cache_clear()


def some_examples(rng: random.Random) -> tuple[str, ...]:
    before, after = (" ".join(rng.choices(WORDS, k=4)) for _ in range(2))
    texts = []
    for _ in range(rng.randint(0, 14)):
        content = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
        texts.append(rng.choice([f"{before}: {content}", f"{content}.\n{after}?", content]))
    return tuple(texts)


def changed(examples: dict[str, tuple[str, ...]], rng: random.Random) -> dict[str, tuple[str, ...]]:
    """Some experts gone, some with other examples, some new."""
    after = dict(examples)
    for expert in rng.sample(sorted(after), k=rng.randint(0, 2)):
        del after[expert]
    for expert in rng.sample(sorted(after), k=rng.randint(0, 2)):
        after[expert] = some_examples(rng)
    for _ in range(rng.randint(0, 2)):
        after[f"expert-{rng.randint(0, 99):02}@00000000"] = some_examples(rng)
    return after


def data_of(examples: dict[str, tuple[str, ...]], embed: Encode) -> FitData:
    experts = [LibraryExpert(name, examples=texts) for name, texts in examples.items()]
    whole = {name: ENCODER.encode(texts) for name, texts in examples.items()}
    bare = {name: ENCODER.encode(bare_texts(texts)) for name, texts in examples.items()}
    return replace(fit_data(experts, whole, ENCODER.name, bare), embed=embed)


def learned(artefact: Artefact) -> tuple[object, object, dict[str, np.ndarray]]:
    """All of an artefact but its calibration, which a policy keeps for a while."""
    return artefact.data["experts"], artefact.data.get("learned"), dict(artefact.arrays)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "options"), CASES)
def test_following_is_fitting_from_nothing(name: str, options: dict[str, object], seed: int) -> None:
    rng = random.Random(seed)
    kind = router_class(name)
    is_calibrated = "max_calibration" in kind.config_class.model_fields
    config = make_config(name, options | ({"max_calibration": 0} if is_calibrated else {}))
    examples = {f"expert-{number:02}@00000000": some_examples(rng) for number in range(12)}
    following: Router | None = None
    forget()
    for _ in range(3):
        artefact = kind.fit(config, replace(data_of(examples, Encode()), previous=following), no_progress)
        following = kind.load(config, artefact)
        examples = changed(examples, rng)
    data = data_of(examples, Encode())
    followed = learned(kind.fit(config, replace(data, previous=following), no_progress))
    forget()
    scratch = learned(kind.fit(config, data, no_progress))
    assert followed[:2] == scratch[:2]
    assert followed[2].keys() == scratch[2].keys()
    for array, expected in scratch[2].items():
        np.testing.assert_allclose(followed[2][array], expected, rtol=1e-6, atol=1e-6, err_msg=array)


def test_two_part_embeds_only_what_is_new_also_after_a_restart() -> None:
    rng = random.Random(7)
    examples = {f"expert-{number:02}@00000000": some_examples(rng) for number in range(30)}
    config, before, after = make_config("two_part", {}), Encode(), Encode()
    router = two_part.TwoPartRouter.load(
        config, two_part.TwoPartRouter.fit(config, data_of(examples, before), no_progress)
    )
    assert len(before.asked) == len(set(before.asked)), "each text once, also by the calibration"
    forget()
    examples["expert-99@00000000"] = tuple(f"quite another request: {word}" for word in WORDS[:12])
    grown = two_part.TwoPartRouter.fit(config, replace(data_of(examples, after), previous=router), no_progress)
    assert 0 < len(after.asked) < 60 < len(before.asked) / 2
    text = "something new\nquite another request"
    rows = ENCODER.encode([text, *parts_of(text)])
    decision = two_part.TwoPartRouter.load(config, grown).route(RouteQuery(text, rows[0], parts=rows[1:]))
    assert decision.candidates[0].expert_id == "expert-99@00000000"
