"""The router that asks the base: what it asks, and what it makes of each answer."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from routers.base import LibraryExpert, Question, RouteQuery, no_progress
from routers.errors import BadArtefact
from routers.fitting import fit_data
from routers.methods.llm_selector import LlmSelectorConfig, LlmSelectorRouter
from tests.unit.routers.builders import ids

SKILLS = {
    "sql@0000000a": "writes queries\n for   databases",
    "cook@0000000b": "knows recipes",
    "law@0000000c": "reads contracts",
    "chess@0000000d": "",
}


def selector(skills: dict[str, str] | None = None, **options: object) -> LlmSelectorRouter:
    experts = [LibraryExpert(expert, text) for expert, text in (SKILLS if skills is None else skills).items()]
    config = LlmSelectorConfig.model_validate(options)
    return LlmSelectorRouter.load(config, LlmSelectorRouter.fit(config, fit_data(experts, {}, "none"), no_progress))


def asked(router: LlmSelectorRouter, query: RouteQuery) -> Question:
    question = router.question(query)
    assert question is not None
    return question


def listed(question: Question) -> list[str]:
    return re.findall(r"^\d+\. (.*)$", question.prompt, re.MULTILINE)


def test_a_question_lists_names_and_descriptions_on_a_line_each() -> None:
    question = asked(selector(), RouteQuery("What is on\nthe menu?"))
    assert question.choices == ("chess", "cook", "law", "sql", "none")
    lines = listed(question)
    assert lines[:4] == ["chess", "cook: knows recipes", "law: reads contracts", "sql: writes queries for databases"]
    assert lines[4].startswith("none: ")
    assert "What is on\nthe menu?" in question.prompt
    assert "none" not in asked(selector(allow_none=False), RouteQuery("x")).choices


def test_tags_stand_in_for_a_description() -> None:
    data = fit_data([LibraryExpert("a@00000001", tags=("tea", "coffee"))], {}, "none")
    config = LlmSelectorConfig()
    router = LlmSelectorRouter.load(config, LlmSelectorRouter.fit(config, data, no_progress))
    assert listed(asked(router, RouteQuery("x")))[0] == "a: tea, coffee"


def test_long_texts_are_cut() -> None:
    router = selector({"a@00000001": "d" * 500}, max_description_chars=50, max_prompt_chars=101)
    prompt = asked(router, RouteQuery("s" * 80 + "m" * 5000 + "e" * 80)).prompt
    assert "d" * 50 + " …" in prompt
    assert "d" * 51 not in prompt
    assert "\n" + "s" * 51 + " … " + "e" * 50 + "\n" in prompt
    assert "\n" + "x" * 101 + "\n" in asked(router, RouteQuery("x" * 101)).prompt


def test_every_choice_means_its_expert_and_none_means_nobody() -> None:
    router = selector()
    query = RouteQuery("anything")
    for expert in SKILLS:
        decision = router.route(replace(query, answer=f" {expert.partition('@')[0]}\n"))
        assert (ids(decision.experts), ids(decision.candidates), decision.confidence) == ([expert], [expert], 0.5)
    for answer in ("none", None, "", "cookery", "cook, law", "COOK", "sql@0000000a", "1"):
        decision = router.route(replace(query, answer=answer))
        assert decision.abstained
        assert decision.confidence == 0
        assert not decision.candidates


def test_an_expert_that_may_not_be_used_is_neither_listed_nor_chosen() -> None:
    router = selector()
    query = RouteQuery("anything", candidates=frozenset({"law@0000000c", "chess@0000000d", "gone@99999999"}))
    question = asked(router, query)
    assert question.choices == ("chess", "law", "none")
    assert not re.search("cook|recipes|sql|databases|gone", question.prompt)
    refused = router.route(replace(query, answer="cook"))
    assert refused.abstained
    assert "cook" not in refused.reason
    assert ids(router.route(replace(query, answer="law")).experts) == ["law@0000000c"]


@pytest.mark.parametrize("seed", range(5))
def test_of_many_experts_those_with_the_rarest_shared_words_are_listed(seed: int) -> None:
    rng = random.Random(seed)
    words = [f"w{n}" for n in range(30)]
    skills = {f"e{n:02d}@{n:08x}": " ".join(rng.sample(words, rng.randint(1, 8))) for n in range(40)}
    prompt = rng.sample(words, 6)
    having = {word: [e for e, text in skills.items() if word in text.split()] for word in prompt}
    evidence = {e: sum(1 / len(having[word]) for word in prompt if e in having[word]) for e in skills}
    expected = sorted(sorted(skills, key=lambda e: (-round(evidence[e], 9), e))[:7])
    router = selector(skills, max_choices=7)
    question = asked(router, RouteQuery(" ".join(prompt).upper() + "?"))
    assert question.choices == (*[expert.partition("@")[0] for expert in expected], "none")


def test_names_that_would_be_confused_stand_with_their_versions() -> None:
    skills = {"none@00000001": "says no", "twin@00000002": "old", "twin@00000003": "new", "solo@00000004": "one"}
    router = selector(skills)
    assert asked(router, RouteQuery("x")).choices == ("none@00000001", "solo", "twin@00000002", "twin@00000003", "none")
    assert router.route(RouteQuery("x", answer="none")).abstained
    for answer in ("none@00000001", "twin@00000003"):
        assert ids(router.route(RouteQuery("x", answer=answer)).experts) == [answer]


def test_nothing_is_asked_where_there_is_no_choice() -> None:
    nobody = RouteQuery("x", candidates=frozenset())
    alone = RouteQuery("x", candidates=frozenset({"law@0000000c"}))
    for router in (selector(), selector(allow_none=False)):
        assert router.question(nobody) is None
        assert router.route(nobody).abstained
    assert asked(selector(), alone).choices == ("law", "none")
    assert selector(allow_none=False).question(alone) is None
    assert ids(selector(allow_none=False).route(alone).experts) == ["law@0000000c"]
    assert selector({}).question(RouteQuery("x")) is None


@pytest.mark.parametrize("data", [{}, {"descriptions": []}, {"descriptions": {"a@00000001": 3}}])
def test_bad_artefacts_are_refused(data: dict[str, object]) -> None:
    good = LlmSelectorRouter.fit(LlmSelectorConfig(), fit_data([], {}, "none"), no_progress)
    with pytest.raises(BadArtefact):
        LlmSelectorRouter.load(LlmSelectorConfig(), replace(good, data=data))
