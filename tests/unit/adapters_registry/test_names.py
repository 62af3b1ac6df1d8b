from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.names import RESERVED_NAMES, check_name, nearest, split_expert_id

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
        *RESERVED_NAMES,
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
