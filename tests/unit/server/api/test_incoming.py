"""What every endpoint needs of an incoming request."""

from collections.abc import Iterator

import pytest
import structlog

from server.api.incoming import headers_of, request_id_of, with_request_id


@pytest.fixture(autouse=True)
def _no_ids_left() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()


@pytest.mark.parametrize("given", [[], [(b"x-request-id", b"bad id\n")], [(b"x-request-id", b"good-1")]])
def test_all_who_look_at_a_request_find_the_same_id(given: list[tuple[bytes, bytes]]) -> None:
    scope = {"type": "http", "path": "/", "headers": [(b"host", b"here"), *given]}
    headers = headers_of(with_request_id(scope))
    request_id = request_id_of(headers)
    assert headers == {"host": "here", "x-request-id": request_id}
    assert structlog.contextvars.get_contextvars()["request_id"] == request_id
    assert (request_id == "good-1") is (given[-1:] == [(b"x-request-id", b"good-1")])
    assert scope["headers"] == [(b"host", b"here"), *given]
