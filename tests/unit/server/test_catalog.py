"""What a name in ``model`` means while the gateway does not know everything yet."""

from __future__ import annotations

import pytest

from server.auth import Principal
from server.catalog import Catalog
from server.errors import ModelNotFound, Unavailable

ANYBODY = Principal("", frozenset({"infer"}))


@pytest.mark.parametrize("asked", ["sql", "sql@1f3a9c02", "mix(sql*0.5,math*0.5)", "auto", None])
def test_before_the_library_is_read_nobody_says_what_does_not_exist(asked: str | None) -> None:
    with pytest.raises(Unavailable) as caught:
        Catalog(("base",), is_read=False).resolve(asked, ANYBODY)
    assert caught.value.status == 503
    assert caught.value.retry_after_s == 1


def test_the_base_can_be_asked_at_once() -> None:
    assert Catalog(("base",), is_read=False).resolve("base", ANYBODY).kind == "base"


@pytest.mark.parametrize("asked", ["auto", "auto:0.3", None])
def test_a_policy_that_is_not_fitted_yet_is_not_unknown(asked: str | None) -> None:
    catalog = Catalog(("base",), pending=lambda: {"auto"})
    with pytest.raises(Unavailable, match="being fitted"):
        catalog.resolve(asked, ANYBODY)
    with pytest.raises(ModelNotFound):
        catalog.resolve("other", ANYBODY)


def test_a_pending_policy_is_not_shown_to_who_may_not_ask_it() -> None:
    catalog = Catalog(("base",), pending=lambda: {"secret"})
    confined = Principal("k", frozenset({"infer"}), policies=("open*",))
    with pytest.raises(ModelNotFound):
        catalog.resolve("secret", confined)
