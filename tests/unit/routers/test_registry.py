"""Router names to classes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from routers import registry
from routers.errors import BadRouter, BadRouterConfig, UnknownRouter
from routers.methods.knn import KnnConfig, KnnRouter
from routers.registry import GROUP, make_config, router_class, router_names

ENTRIES = {
    "knn": "routers.methods.knn:KnnRouter",
    "absent": "no_such_module:Router",
    "function": "routers.registry:router_names",
    "not-a-router": "routers.artefacts:ArtefactStore",
}


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    router_class.cache_clear()
    yield
    router_class.cache_clear()


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    known = dict(ENTRIES)

    def entry_points(**wanted: Any) -> EntryPoints:
        return EntryPoints(EntryPoint(name, value, GROUP) for name, value in known.items()).select(**wanted)

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return known


def test_built_in_routers_are_installed_entry_points() -> None:
    assert "knn" in router_names()
    assert router_class("knn") is KnnRouter


def test_names_are_listed_without_importing(entries: dict[str, str]) -> None:
    assert router_names() == ("absent", "function", "knn", "not-a-router")


def test_an_unknown_name_gets_the_nearest(entries: dict[str, str]) -> None:
    with pytest.raises(UnknownRouter, match="did you mean knn"):
        router_class("kn")
    with pytest.raises(UnknownRouter, match="known are: absent, function, knn"):
        router_class("zzzzzz")


@pytest.mark.parametrize(
    ("name", "problem"), [("absent", "cannot be imported"), ("function", "not a class"), ("not-a-router", "card")]
)
def test_what_does_not_fit_says_why(entries: dict[str, str], name: str, problem: str) -> None:
    with pytest.raises(BadRouter, match=problem):
        router_class(name)


def test_two_packages_may_not_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = EntryPoints(
        EntryPoint("knn", value, GROUP) for value in ("routers.methods.knn:KnnRouter", "elsewhere:Router")
    )
    monkeypatch.setattr(registry, "entry_points", lambda **wanted: pair.select(**wanted))
    with pytest.raises(BadRouter, match="elsewhere:Router"):
        router_class("knn")


def test_what_was_found_is_kept_and_what_was_not_is_looked_for_again(entries: dict[str, str]) -> None:
    with pytest.raises(UnknownRouter):
        router_class("mine")
    entries["mine"] = entries.pop("knn")
    assert router_class("mine") is KnnRouter
    entries.clear()
    assert router_class("mine") is KnnRouter
    router_class.cache_clear()
    with pytest.raises(UnknownRouter):
        router_class("mine")


def test_options_become_a_config(entries: dict[str, str]) -> None:
    assert make_config("knn", {"k": 7}) == KnnConfig(k=7)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"kk": 1}, "unknown option 'kk'.*in_library_share, k, max_calibration"), ({"k": 0}, "bad value for 'k'")],
)
def test_bad_options_are_named_with_the_allowed_ones(
    entries: dict[str, str], options: dict[str, int], problem: str
) -> None:
    with pytest.raises(BadRouterConfig, match=problem):
        make_config("knn", options)


def test_every_router_module_says_what_it_is() -> None:
    for name in router_names():
        card = router_class(name).card
        assert card.name == name
        assert card.title
        assert card.paper


def test_the_package_imports_no_web_framework() -> None:
    for module in Path(registry.__file__).parent.rglob("*.py"):
        text = module.read_text()
        assert "import fastapi" not in text
        assert "from server" not in text
