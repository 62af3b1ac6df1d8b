from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters_registry.errors import BadManifest
from adapters_registry.keys import new_key
from adapters_registry.records import (
    MAX_EXAMPLES,
    Manifest,
    ProbeReport,
    parse_examples,
    parse_manifest,
    utc_now,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
KNOWN = st.sampled_from(["name", "source", "card", "examples", "path", "description", "tags"])


def test_a_full_manifest() -> None:
    manifest = parse_manifest(
        b'{"name": "sql", "source": {"path": "/x"}, "card": {"description": "d", "tags": ["a"]}, "examples": ["p"]}'
    )
    assert manifest.source is not None
    assert (manifest.name, manifest.source.path, manifest.card.tags, manifest.examples) == ("sql", "/x", ["a"], ["p"])


@pytest.mark.parametrize(
    ("manifest", "where"),
    [
        ({}, "name"),
        ({"name": "SQL"}, "name"),
        ({"name": "auto"}, "name"),
        ({"name": 7}, "name"),
        ({"name": "sql", "extra": 1}, "extra"),
        ({"name": "sql", "card": {"nope": 1}}, "card.nope"),
        ({"name": "sql", "card": {"description": "x" * 4001}}, "card.description"),
        ({"name": "sql", "card": {"tags": ["x" * 65]}}, "card.tags.0"),
        ({"name": "sql", "card": {"tags": ["x"] * 65}}, "card.tags"),
        ({"name": "sql", "examples": [""]}, "examples.0"),
        ({"name": "sql", "examples": ["x" * 8001]}, "examples.0"),
        ({"name": "sql", "examples": ["x"] * (MAX_EXAMPLES + 1)}, "examples"),
        ({"name": "sql", "examples": "text"}, "examples"),
        ({"name": "sql", "examples": ["a\0b"]}, "examples.0"),
        ({"name": "sql", "examples": ["\ud800"]}, "examples.0"),
        ({"name": "sql", "source": {"path": ""}}, "source.path"),
        ({"name": "sql", "source": "/x"}, "source"),
    ],
)
def test_bad_manifests_name_the_place(manifest: dict[str, Any], where: str) -> None:
    with pytest.raises(BadManifest) as caught:
        parse_manifest(manifest)
    assert where in [problem.where for problem in caught.value.problems]
    assert all(problem.fix for problem in caught.value.problems)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(BadManifest) as caught:
        parse_manifest({"name": "SQL", "card": {"tags": [1, 2]}, "wrong": 1})
    assert len(caught.value.problems) == 4


@given(st.one_of(JSON, st.dictionaries(KNOWN, JSON), st.binary(), st.text()))
def test_any_text_is_a_manifest_or_a_clear_error(value: Any) -> None:
    raw = value if isinstance(value, (bytes, str)) else json.dumps(value)
    try:
        manifest = parse_manifest(raw)
    except BadManifest as error:
        assert error.problems
        assert error.message.isprintable() or "\n" not in error.message
    else:
        assert isinstance(manifest, Manifest)


def test_examples_alone() -> None:
    assert parse_examples(["a", "b"]) == ("a", "b")
    with pytest.raises(BadManifest):
        parse_examples("abc")
    with pytest.raises(BadManifest):
        parse_examples(["a", 1])


def test_keys_expire() -> None:
    record, _ = new_key("k", expires_at=utc_now() + timedelta(seconds=60))
    assert record.is_usable()
    assert not record.is_usable(utc_now() + timedelta(seconds=61))


def test_probe_reports_of_earlier_releases_are_read() -> None:
    problem = {"where": "probe.effect", "what": "answers as the base does", "fix": "Train it."}
    stored = {
        "passed": False,
        "at": "2026-01-02T03:04:05.678000+00:00",
        "num_prompts": 3,
        "base_distance": 0.0,
        "noise": None,
        "nearest_other": {"expert": "dates@00000000", "distance": 0.5},
        "problems": [problem],
    }
    report = ProbeReport.model_validate(stored)
    assert not report.passed
    assert report.as_json() == {name: value for name, value in stored.items() if value is not None}
    skipped = {"passed": True, "at": stored["at"], "skipped": "no log-probabilities", "problems": []}
    assert ProbeReport.model_validate(skipped).as_json() == skipped
