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


def test_new_ids_come_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    milliseconds = [1_700_000_000_000, 1_700_000_000_001, 1_800_000_000_000]
    times = iter([number * 1_000_000 for number in milliseconds])
    monkeypatch.setattr("server.api.incoming.time.time_ns", lambda: next(times))
    ids = [request_id_of({}) for _ in milliseconds]
    assert ids == sorted(ids)
    assert [int(each[:12], 16) for each in ids] == milliseconds
    assert all(len(each) == 32 for each in ids)


def test_new_ids_of_one_moment_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.incoming.time.time_ns", lambda: 0)
    assert len({request_id_of({}) for _ in range(1000)}) == 1000
