"""`two_part` against its formulas in float64, and what it is made for: content and instruction in other company."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from routers.base import FitData, LibraryExpert, Matrix, RouteQuery, Router, no_progress
from routers.embedders.hashing import HashingEncoder
from routers.families.scoring import Prompts
from routers.fitting import fit_data
from routers.methods.two_part import TwoPartRouter
from routers.registry import make_config
from routers.text.segments import parts_of
from routers.text.templates import bare_texts

ENCODER = HashingEncoder(256)
WORDS = "rain team bus coffee holiday phone shoes keys late cold lost new signal today won again".split()
ASKED = {
    "irony@00000001": ["Is this tweet ironic or meant in earnest?\n{}", "Tweet: {}\nironic or not ironic"],
    "mood@00000002": ["Which emotion has the writer of this?\n{}", "Tweet: {}\nanger joy or sadness"],
    "sums@00000003": ["How much is {} plus {}?"],
}


def library(num: int = 24) -> FitData:
    rng = np.random.default_rng(0)
    examples = {}
    for name, templates in ASKED.items():
        blanks = [(f"{rng.integers(100)}", f"{rng.integers(100)}") for _ in range(num)]
        tweets = [(f"{name[0]}{n} {' '.join(rng.choice(WORDS, 3))} {n}{name[0]}",) for n in range(num)]
        filled = blanks if name.startswith("sums") else tweets
        examples[name] = tuple(templates[n % len(templates)].format(*filled[n]) for n in range(num))
    experts = [LibraryExpert(name, examples=texts) for name, texts in examples.items()]
    whole = {name: ENCODER.encode(texts) for name, texts in examples.items()}
    bare = {name: ENCODER.encode(bare_texts(texts)) for name, texts in examples.items()}
    return replace(fit_data(experts, whole, "hashing", bare), embed=ENCODER.encode)


def fitted(data: FitData, **options: object) -> TwoPartRouter:
    config = make_config("two_part", options)
    return TwoPartRouter.load(config, TwoPartRouter.fit(config, data, no_progress))


def ask(router: Router, text: str) -> tuple[str | None, dict[str, float]]:
    rows = ENCODER.encode([text, *parts_of(text)])
    decision = router.route(RouteQuery(text, rows[0], parts=rows[1:]))
    chosen = decision.experts[0].expert_id if decision.experts else None
    return chosen, {scored.expert_id: scored.score for scored in decision.candidates}


@pytest.mark.parametrize(
    ("prompt", "expert"),
    [
        ("the train is late\nironic or meant in earnest", "irony@00000001"),
        ("which emotion of the writer: cold coffee", "mood@00000002"),
        ("a day without coffee\njoy or sadness", "mood@00000002"),
        ("How much is 7 plus 8?", "sums@00000003"),
    ],
)
def test_the_instruction_decides_between_experts_of_the_same_content(prompt: str, expert: str) -> None:
    assert ask(fitted(library(), threshold=-1), prompt)[0] == expert


def test_scores_are_the_formulas() -> None:
    data = library()
    artefact = TwoPartRouter.fit(make_config("two_part", {}), data, no_progress)
    router = TwoPartRouter.load(make_config("two_part", {}), artefact)
    arrays = {name: np.asarray(array, np.float64) for name, array in artefact.arrays.items()}
    w1, w2, w0 = arrays["detector"]

    def top(values: Sequence[float], num: int) -> float:
        return float(np.mean(sorted(values)[-num:]))

    for prompt in [
        "late again\nironic or not",
        "emotion: joy",
        "7 plus 8",
        "Tweet: my team lost. anger joy or sadness",
    ]:
        whole, first, last, tail, head = ENCODER.encode([prompt, *parts_of(prompt)]).astype(np.float64)
        likely = []
        for segment in (first, last):
            z = w1 * max(arrays["cues"] @ segment) + w2 * top((arrays["contents"] @ segment).tolist(), 3) + w0
            likely.append(1 / (1 + np.exp(-z)))
        end = int(np.argmax(likely))
        content = (tail, head)[end] if likely[end] > 0.5 else whole
        expected = {}
        for number, expert in enumerate(sorted(data.embeddings)):
            own = arrays["owner"] == number
            near = (
                top((arrays["bare"][own] @ content).tolist(), 3) + top((arrays["whole"][own] @ whole).tolist(), 3)
            ) / 2
            cues = arrays["cues"][arrays["cue_owner"] == number] @ (first, last)[end]
            expected[expert] = near + likely[end] * max(cues, default=0.0)
        assert ask(router, prompt)[1] == pytest.approx(expected, abs=1e-5)


def test_evidence_is_that_of_the_expert_that_would_be_chosen() -> None:
    data = library()
    artefact = TwoPartRouter.fit(make_config("two_part", {}), data, no_progress)
    router = TwoPartRouter.load(make_config("two_part", {}), artefact)
    prompts = ["late again\nironic or not", "emotion: joy", "7 plus 8", "a day without coffee", "what is love?"]
    for prompt in prompts:
        rows = ENCODER.encode([prompt, *parts_of(prompt)])
        judged = router.judge(Prompts((prompt,), rows[:1], rows[None, 1:]))
        decision = router.route(RouteQuery(prompt, rows[0], parts=rows[1:]))
        expected = judged.evidence[0, judged.scores[0].argmax()]
        assert float(decision.reason.split()[1]) == pytest.approx(expected, abs=6e-4)


def test_cues_are_what_examples_share_and_contents_are_not() -> None:
    learned = TwoPartRouter.fit(make_config("two_part", {}), library(), no_progress)
    cues = learned.data["learned"]["cues"]
    assert "Is this tweet ironic or meant in earnest?" in cues
    assert "anger joy or sadness" in cues
    assert not any(word in cue.split() for cue in cues for word in WORDS)


def test_how_crowded_an_example_is() -> None:
    data = library()
    artefact = TwoPartRouter.fit(make_config("two_part", {}), data, no_progress)
    bare, owner = artefact.arrays["bare"].astype(np.float64), artefact.arrays["owner"]
    for row in range(0, len(bare), 7):
        others = [bare[row] @ bare[other] for other in np.flatnonzero(owner == owner[row]) if other != row]
        assert artefact.arrays["crowd"][row] == pytest.approx(np.mean(sorted(others)[-3:]), abs=1e-5)


def test_without_parts_the_prompt_stands_for_them() -> None:
    router = fitted(library(), threshold=-1)
    prompt = "How much is 3 plus 4?"
    row: Matrix = ENCODER.encode([prompt])
    alone = router.route(RouteQuery(prompt, row[0]))
    assert {s.expert_id: s.score for s in alone.candidates} == pytest.approx(ask(router, prompt)[1], abs=1e-6)


def test_examples_are_limited_evenly() -> None:
    data = library(num=50)
    artefact = TwoPartRouter.fit(make_config("two_part", {"max_examples": 10}), data, no_progress)
    assert np.bincount(artefact.arrays["owner"]).tolist() == [10, 10, 10]
