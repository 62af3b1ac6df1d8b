"""All routes of the application, in one process and without an engine: which key each needs, and what it refuses."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute

from adapters_registry.keys import new_key
from routers.embedders.hashing import HashingEncoder
from server.api.app import Edge, build_app
from server.endpoints import ENDPOINTS
from server.settings import Settings
from server.wiring import open_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPEN = {"/livez", "/health", "/readyz"}
SCOPES = ("infer", "admin", "metrics")


@dataclass(frozen=True)
class Api:
    """An application, and a client for a key of each scope; `nobody` has no key."""

    app: Edge
    clients: dict[str, httpx.AsyncClient]

    @property
    def admin(self) -> httpx.AsyncClient:
        return self.clients["admin"]

    def endpoints(self) -> list[tuple[str, str]]:
        """Method and path of every endpoint except the console's files."""
        routes = [route for route in self.app.rest.routes if isinstance(route, APIRoute)]
        listed = {(method, route.path) for route in routes for method in route.methods}
        listed |= {("POST", path) for path in ENDPOINTS}
        return sorted((method, path) for method, path in listed if not path.startswith("/console"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    home = tmp_path_factory.mktemp("home")
    settings = Settings(
        home=home, engine_url=["http://127.0.0.1:9"], embedder="hashing", base_model="base", log_level="error"
    )
    async with contextlib.AsyncExitStack() as stack:
        gateway = await open_gateway(settings, HashingEncoder(), "")
        stack.push_async_callback(gateway.close)
        headers: dict[str, dict[str, str]] = {"nobody": {}}
        for scope in SCOPES:
            record, secret = new_key(scope, scopes={scope})
            await gateway.library.keys.add(record)
            headers[scope] = {"authorization": f"Bearer {secret}"}
        await gateway.watcher.show_experts()
        app = build_app(gateway)
        clients = {
            name: httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=each)
            for name, each in headers.items()
        }
        for client in clients.values():
            await stack.enter_async_context(client)
        yield Api(app, clients)


async def test_every_endpoint_refuses_keys_without_its_scope(api: Api) -> None:
    endpoints = api.endpoints()
    assert len(endpoints) > 40
    for method, path in endpoints:
        if path in OPEN:
            continue
        allowed = {"admin"} if path.startswith("/admin") else {"admin", "metrics"} if path == "/metrics" else {"infer"}
        for name, client in api.clients.items():
            status = (await client.request(method, re.sub(r"\{[^}]*\}", "absent", path))).status_code
            if name == "nobody":
                assert status == 401, (method, path)
            elif name not in allowed:
                assert status == 403, (method, path, name)
            else:
                assert status not in (401, 403), (method, path, name)


@pytest.mark.parametrize("path", sorted(OPEN))
async def test_probes_need_no_key(api: Api, path: str) -> None:
    assert (await api.clients["nobody"].get(path)).status_code == (503 if path == "/readyz" else 200)


async def test_the_document_shows_the_scope_and_the_body_of_every_endpoint(api: Api) -> None:
    document = (await api.clients["nobody"].get("/openapi.json")).json()
    assert {(method.upper(), path) for path, each in document["paths"].items() for method in each} == set(
        api.endpoints()
    )
    bodies = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("security", []) == ([] if path in OPEN else [{"bearer": []}, {"x-api-key": []}]), path
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                bodies[method, path] = schema["$ref"].rpartition("/")[2]
    assert set(bodies.values()) <= document["components"]["schemas"].keys()
    assert {path: name for (_, path), name in bodies.items() if path.startswith("/admin")} == {
        "/admin/adapters": "Manifest",
        "/admin/adapters/compose": "ComposeRequest",
        "/admin/adapters/{ref}/examples": "ExamplesRequest",
        "/admin/adapters/{ref}/promote": "PromoteRequest",
        "/admin/adapters/{ref}/withdraw": "ChangeRequest",
        "/admin/adapters/{name}/rollback": "ChangeRequest",
        "/admin/policies": "PolicyRequest",
        "/admin/scores": "ScoreReport",
        "/admin/map/place": "PlaceRequest",
        "/admin/leaderboard": "Leaderboard",
    }


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "param"),
    [
        ("POST", "/admin/adapters/compose", b'{"name": "x"}', 400, "recipe"),
        ("POST", "/admin/adapters/compose", b"[", 400, None),
        ("POST", "/admin/adapters/compose", b'{"name": "x", "recipe": "base"}', 400, "recipe"),
        ("PUT", "/admin/adapters/absent/examples", b'{"examples": 1}', 400, "examples"),
        ("PUT", "/admin/adapters/absent/examples", b'["a prompt"]', 404, None),
        ("POST", "/admin/adapters/absent/promote", b"", 404, None),
        ("POST", "/admin/adapters/absent/promote", b'{"share": 2}', 400, "share"),
        ("POST", "/admin/adapters/absent/withdraw", b'{"reason": "slow"}', 404, None),
        ("POST", "/admin/adapters/absent/rollback", b'{"share": 1}', 400, "share"),
        ("POST", "/admin/policies", b'{"name": "Bad Name", "router": "knn"}', 400, "name"),
        ("POST", "/admin/policies", b'{"router": "knn"}', 400, "name"),
        ("POST", "/admin/scores", b'{"rows": [{"prompt": "a"}]}', 400, "rows.0"),
        ("POST", "/admin/scores", b'{"rows": []}', 200, None),
        ("POST", "/admin/map/place", b'{"texts": []}', 400, "texts"),
        ("POST", "/admin/map/place", b'{"texts": ["a prompt"]}', 200, None),
        ("PUT", "/admin/leaderboard", b'{"rows": []}', 400, "about"),
        ("GET", "/admin/decisions?limit=0", b"", 400, None),
    ],
)
async def test_bodies_and_parameters_are_checked(
    api: Api, method: str, path: str, content: bytes, status: int, param: str | None
) -> None:
    answer = await api.admin.request(method, path, content=content)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, 400),
        ({"json": {"name": "x"}}, 400),
        ({"json": {"name": "x", "source": {"path": "/absent"}}}, 400),
        ({"files": {"files": b"x"}}, 400),
        ({"files": {"files": b"x"}, "data": {"manifest": '{"name": "x"}'}}, 400),
    ],
)
async def test_bad_registrations_are_refused(api: Api, sent: dict[str, Any], status: int) -> None:
    answer = await api.admin.post("/admin/adapters", **sent)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


async def test_feedback_names_the_bad_field(api: Api) -> None:
    answer = await api.clients["infer"].post("/v1/feedback", json={"request_id": "r", "rating": 2})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "rating")


async def test_what_an_operator_reads_can_be_read(api: Api) -> None:
    for method, path in api.endpoints():
        if method == "GET" and path.startswith("/admin") and "{" not in path:
            assert (await api.admin.get(path)).status_code == 200, path
    overview = (await api.admin.get("/admin/overview")).json()
    assert (overview["ready"], overview["experts"], overview["base"]) == (False, [], "base")
    assert b"moergate_engine_up" in (await api.clients["metrics"].get("/metrics")).content
