"""Errors: every lower error is mapped, every shape is OpenAI's, nothing of ours leaks."""

import errno
import json
from collections.abc import Iterator

import pytest

from adapters_registry import errors as registry_errors
from routers import errors as router_errors
from server.errors import GatewayError, InternalError, StorageFailed, error_body, from_lower


def below(kind: type[Exception]) -> Iterator[type[Exception]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


def blank(kind: type[Exception]) -> Exception:
    """An instance without running the constructor, whose arguments differ."""
    error = kind.__new__(kind)
    Exception.__init__(error, "what is wrong")
    return error


@pytest.mark.parametrize(
    "kind",
    [*below(registry_errors.RegistryError), *below(router_errors.RouterError)],
    ids=lambda kind: kind.__name__,
)
def test_every_lower_error_has_its_own_mapping(kind: type[Exception]) -> None:
    mapped = from_lower(blank(kind))
    internal = {"DatabaseBroken", "BadArtefact", "EmbedderError", "BadRouter"}
    assert isinstance(mapped, InternalError) == (kind.__name__ in internal)
    assert mapped.message == "what is wrong"


def test_unknown_errors_tell_nothing() -> None:
    assert "secret" not in from_lower(RuntimeError("secret")).message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_locked_disk_is_named(number: int) -> None:
    mapped = from_lower(OSError(number, "no room"))
    assert isinstance(mapped, StorageFailed)
    assert "no room" in mapped.message


@pytest.mark.parametrize("kind", list(below(GatewayError)), ids=lambda kind: kind.__name__)
def test_every_error_has_openais_shape(kind: type[GatewayError]) -> None:
    body = json.loads(error_body(kind("text", param="model")))
    assert body == {"error": {"message": "text", "type": kind.type, "param": "model", "code": kind.code}}
    assert 400 <= kind.status < 600
    assert kind.code


def test_problems_are_listed() -> None:
    problem = registry_errors.Problem("here", "wrong", "mend it")
    mapped = from_lower(registry_errors.InvalidAdapter([problem]))
    assert json.loads(error_body(mapped))["error"]["problems"] == [{"where": "here", "what": "wrong", "fix": "mend it"}]
