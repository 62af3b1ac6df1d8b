"""The recipe language: what is printed reads back, what does not parse says where and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.disk.layout import EXPERT_ID, recipe_digest
from routers import base as routers_base
from server.engine.recipes import (
    MAX_EXPERTS,
    Base,
    Gate,
    Mix,
    Recipe,
    RecipeError,
    SetRef,
    Single,
    bind,
    experts_of,
    gate_of,
    mix_of,
    parse,
    parse_asked,
)

A, B, C = "math@77ab01cd", "sql@1f3a9c02", "sum@00000000"

expert_ids = st.from_regex(EXPERT_ID, fullmatch=True)
sizes = st.floats(0.01, 100.0) | st.floats(-100.0, -0.01)
weights = st.dictionaries(expert_ids, sizes, min_size=1, max_size=8)


@st.composite
def gates(draw: st.DrawFn) -> Recipe:
    experts = draw(st.lists(expert_ids, min_size=1, max_size=8, unique=True))
    k = draw(st.integers(1, len(experts)))
    return gate_of("arrow", experts, k, draw(st.floats(0.01, 100.0)), draw(st.sampled_from(["output", "ab"])))


recipes = st.one_of(
    st.just(Base()),
    expert_ids.map(Single),
    st.builds(mix_of, weights, st.sampled_from(["output", "ab"])),
    gates(),
    st.text("0123456789abcdef", min_size=16, max_size=16).map(SetRef),
)


@given(recipes)
def test_what_is_printed_reads_back(recipe: Recipe) -> None:
    assert parse(str(recipe)) == recipe


@given(st.text(max_size=80) | st.text("abmixgate@01(),;*=.k", max_size=60))
def test_reading_is_total_and_canonical(text: str) -> None:
    try:
        recipe = parse(text)
    except RecipeError as error:
        assert 0 <= error.position <= len(text)
        assert error.reason
    else:
        assert parse(str(recipe)) == recipe


@given(recipes, st.data())
def test_a_damaged_recipe_never_crashes(recipe: Recipe, data: st.DataObject) -> None:
    text = str(recipe)
    at = data.draw(st.integers(0, len(text)))
    damaged = (
        text[:at] + data.draw(st.sampled_from(["", "*", ",", ")", "(", "@", ";", "-", "nan", "é"])) + text[at + 1 :]
    )
    for read in (parse, parse_asked):
        try:
            read(damaged)
        except RecipeError as error:
            assert 0 <= error.position <= len(damaged)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (f"mix({B}*0.620,{A}*0.38)", f"mix({A}*0.38,{B}*0.62)"),
        (f"mix({A}*0.004,{B}*0.5)", f"mix({B}*0.5)"),
        (f"mix({A}*1)", A),
        (f"mix({A}*1.00,{B}*0.001)", A),
        (f"mix({A}*-0.50)", f"mix({A}*-0.5)"),
        (f"mix({B}*0.5,{A}*-0.004)", f"mix({B}*0.5)"),
        (f"mix({B}*0.50,{A}*-0.25;agg=ab)", f"mix({A}*-0.25,{B}*0.5;agg=ab)"),
        (f"mix({B}*0.5,{A}*0.25;agg=output)", f"mix({A}*0.25,{B}*0.5)"),
        (f"gate(arrow;{B},{A})", f"gate(arrow,k=2,t=1;{A},{B})"),
        (f"gate(arrow,t=0.50,agg=output,k=1;{B},{A})", f"gate(arrow,k=1,t=0.5;{A},{B})"),
        (f"gate(arrow,agg=ab;{A},{B})", f"gate(arrow,k=2,t=1,agg=ab;{A},{B})"),
        (f"gate(arrow;{A})", A),
        (f"gate(uniform,agg=ab;{B},{A})", f"gate(uniform,k=2,t=1,agg=ab;{A},{B})"),
    ],
)
def test_equal_recipes_are_equal_texts(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "position", "hint"),
    [
        ("", 0, "1 to 63 characters"),
        ("SQL@1f3a9c02", 0, "'S' is not allowed"),
        ("sql", 3, "needs a version"),
        ("sql@1f3a", 4, "8 hex digits"),
        ("sql@1f3a9c02x", 12, "ends here"),
        ("sql@1F3A9C02", 4, "8 hex digits"),
        ("a/../b@1f3a9c02", 1, "not allowed"),
        ("mix()", 4, "expected an expert"),
        (f"mix({A})", 17, "expected a weight"),
        (f"mix({A}*--0.5)", 19, "a weight must be a number"),
        (f"ensemble({A}*0.5)", 0, "unknown recipe ensemble"),
        ("sql(", 0, "unknown recipe sql"),
        (f"mix({A}*0.5;agg=max)", 26, "agg must be output or ab"),
        (f"mix({A}*0.5;k=2)", 22, "expected the option agg="),
        (f"mix({A}*nan)", 18, "a weight must be a number"),
        (f"mix({A}*1e9)", 19, "',' or '\\)'"),
        (f"mix({A}*0,{B}*0)", 4, "every weight rounds to zero"),
        (f"mix({A}*101)", 4, "from -100 to 100"),
        (f"mix({A}*-101)", 4, "from -100 to 100"),
        (f"mix({A}*0.5,{A}*0.5)", 22, "duplicate expert"),
        (f"mix({A}*0.5", 21, "expected ',' or"),
        (f"mix({A}*0.5)x", 22, "continues"),
        (f"gate(phat;{A},{B})", 5, "unknown gate"),
        (f"gate(arrow,k=3;{A},{B})", 5, "k=3 must be from 1"),
        (f"gate(arrow,k=0;{A},{B})", 5, "k=0 must be from 1"),
        (f"gate(arrow,t=0;{A},{B})", 5, "t=0 must be above 0"),
        (f"gate(uniform,k=1;{A},{B})", 5, "weights all of its 2 experts"),
        (f"gate(arrow,k=1,k=1;{A})", 15, "duplicate option"),
        (f"gate(arrow,z=1;{A})", 11, "unknown option 'z'"),
        (f"gate(arrow,agg=x;{A})", 15, "agg must be output or ab"),
        ("gate(arrow)", 10, "';'"),
        (f"gate(arrow;{A},{A})", 5, "duplicate expert"),
        ("set:xyz", 4, "16 hex digits"),
        ("x" * 9000, 8192, "at most 8192"),
    ],
)
def test_errors_say_where_and_why(text: str, position: int, hint: str) -> None:
    with pytest.raises(RecipeError, match=hint) as error:
        parse(text)
    assert error.value.position == position


def test_too_many_experts_are_refused() -> None:
    text = ",".join(f"e{number}@00000000*1" for number in range(MAX_EXPERTS + 1))
    with pytest.raises(RecipeError, match="too many"):
        parse(f"mix({text})")


def test_a_caller_may_leave_versions_away() -> None:
    versions = {"math": A, "sql": B, B: B}
    assert bind(parse_asked("mix(sql*1;agg=ab)"), versions.__getitem__) == Single(B)
    assert bind(parse_asked("mix(sql*-1;agg=ab)"), versions.__getitem__) == Mix(((B, -1.0),), "ab")
    asked = parse_asked(f"mix({B}*0.25,math*0.75)")
    assert bind(asked, versions.__getitem__) == Mix(((A, 0.75), (B, 0.25)))
    assert bind(parse_asked("gate(arrow,k=1;sql,math)"), versions.__getitem__) == Gate("arrow", (A, B), 1)


@pytest.mark.parametrize("text", [f"mix(sql*0.5,{B}*0.5)", f"gate(arrow;sql,{B})"])
def test_two_names_of_one_expert_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duplicate"):
        bind(parse_asked(text), {"sql": B, B: B}.__getitem__)


def test_experts_and_digests() -> None:
    assert experts_of(parse(f"mix({A}*0.5,{B}*0.5)")) == (A, B)
    assert experts_of(parse(f"gate(arrow;{C},{B})")) == (B, C)
    assert experts_of(Base()) == ()
    assert parse(f"set:{recipe_digest('mix')}") == SetRef(recipe_digest("mix"))


def test_a_decision_holds_as_many_experts_as_a_recipe() -> None:
    assert routers_base.MAX_EXPERTS == MAX_EXPERTS
