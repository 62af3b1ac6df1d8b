from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry import names as module
from adapters_registry.names import RESERVED_NAMES, KnownNames, check_name, nearest, split_expert_id

VERSIONS = st.text("0123456789abcdef", min_size=8, max_size=8)


@pytest.mark.parametrize("name", ["sql", "a", "0", "a.b-c_d", "x" * 63, "sql.v2"])
def test_good_names(name: str) -> None:
    assert check_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "SQL",
        "-a",
        ".a",
        "_a",
        "a..b",
        "a/b",
        "a@b",
        "x" * 64,
        "a b",
        "a\n",
        "é",
        "ａ",
        "a*b",
        "../x",
        *sorted(RESERVED_NAMES),
    ],
)
def test_bad_names_say_what_to_do(name: str) -> None:
    problem = check_name(name)
    assert problem is not None
    assert problem.where == "name"
    assert problem.fix


@given(st.text())
def test_accepted_names_are_safe_everywhere(name: str) -> None:
    if check_name(name) is None:
        assert name.isascii()
        assert name == name.lower()
        assert not set(name) & set("/\\@*,;=() \0\n")
        assert ".." not in name
        assert split_expert_id(name) == (name, None)


@given(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True), VERSIONS)
def test_expert_ids_round_trip(name: str, version: str) -> None:
    assert split_expert_id(f"{name}@{version}") == (name, version)


@given(st.text())
def test_splitting_is_total(reference: str) -> None:
    name, version = split_expert_id(reference)
    assert reference == (name if version is None else f"{name}@{version}")


def test_nearest_names_come_best_first() -> None:
    names = ["tweet_irony", "tweet_emotion", "banking", "math"]
    assert nearest("tweet_iron", names)[0] == "tweet_irony"
    assert nearest("TWEET_IRONY", names)[0] == "tweet_irony"
    assert nearest("zzzzzz", names) == ()
    assert len(nearest("a" * 100_000, names)) <= 3


@given(
    st.lists(st.from_regex(r"[a-z]{3,8}_[a-z]{3,8}_[0-9]{3}", fullmatch=True), min_size=1, max_size=500, unique=True),
    st.integers(0),
    st.integers(0),
    st.sampled_from(["", "x", "xy"]),
)
def test_a_slip_of_the_pen_finds_the_name(names: list[str], which: int, where: int, instead: str) -> None:
    meant = names[which % len(names)]
    place = where % len(meant)
    written = meant[:place] + instead + meant[place + 1 :]
    found = KnownNames(names).nearest(written, limit=len(names))
    assert meant in found or num_closer(written, meant, names) >= 16


def num_closer(written: str, meant: str, names: list[str]) -> int:
    """How many names have as long a beginning or end in common with what was written as the one that was meant."""
    long = max(shared(written, meant), shared(written[::-1], meant[::-1]))
    return sum(max(shared(written, name), shared(written[::-1], name[::-1])) >= long for name in names) - 1


def shared(one: str, other: str) -> int:
    """Length of the beginning that both have."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


@pytest.mark.parametrize("num", [10, 1000, 20_000])
def test_what_it_costs_does_not_grow_with_the_names(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownNames(f"expert-{number:05d}" for number in range(num))
    compared: list[str] = []

    def compare(_name: str, near: list[str], **_options: object) -> list[str]:
        compared.extend(near)
        return []

    monkeypatch.setattr(module.difflib, "get_close_matches", compare)
    known.nearest("expert-0000x")
    assert 0 < len(compared) <= 64
