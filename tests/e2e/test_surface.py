"""Every endpoint: which keys may call it, and that it reveals nothing about a hidden expert.

Endpoints are enumerated from the application and its OpenAPI document, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from adapters_registry.keys import new_key
from server.api.app import build_app
from tests.e2e.conftest import EXAMPLES, register_examples
from tests.support.asking import answers, job_ended
from tests.support.servers import Running, running_gateway
from tests.support.waiting import eventually

OPEN = {"/livez", "/health", "/readyz"}
HIDDEN, UNKNOWN = "dates", "setad"  # as long as each other, and as far from every other name


@contextlib.asynccontextmanager
async def with_keys(running: Running, **keys: dict[str, Any]) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    """A client for each of these new keys, and `nobody` without one."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for name, options in keys.items():
            record, secret = new_key(name, **options)
            await running.gateway.library.keys.add(record)
            headers = {"authorization": f"Bearer {secret}"}
            client = httpx.AsyncClient(base_url=running.url, headers=headers, timeout=30)
            clients[name] = await stack.enter_async_context(client)
        clients["nobody"] = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=30))
        await eventually(lambda: answers(clients["nobody"], "/v1/models", 401))
        yield clients


async def test_the_document_says_which_endpoints_need_a_key(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.url) as http:
        document = (await http.get("/openapi.json")).json()
    for path, each in document["paths"].items():
        for operation in each.values():
            needed = [] if path in OPEN else [{"bearer": []}, {"x-api-key": []}]
            assert operation.get("security", []) == needed, path


async def operations(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    found = (await client.get("/openapi.json")).json()["paths"]
    listed = [(method.upper(), path) for path, each in found.items() for method in each]
    assert len(listed) > 25
    return listed


def routes(running: Running) -> set[tuple[str, str]]:
    """Method and path of every route that is not a file of the console, whether the document shows it or not."""
    app = build_app(running.gateway).rest
    found = [route for route in app.routes if isinstance(route, APIRoute) and not route.path.startswith("/console")]
    return {(method, route.path) for route in found for method in route.methods}


def filled(path: str, value: str) -> str:
    return re.sub(r"\{[^}]*\}", value, path)


async def test_every_endpoint_needs_a_key_of_its_scope(running: Running) -> None:
    scopes = {"infer": {"infer"}, "admin": {"admin"}, "metrics": {"metrics"}}
    async with with_keys(running, **{name: {"scopes": each} for name, each in scopes.items()}) as clients:
        documented = set(await operations(clients["nobody"]))
        assert routes(running) <= documented
        for method, path in sorted(documented):
            url = filled(path, "absent")
            nobody = await clients["nobody"].request(method, url)
            if path in OPEN:
                assert nobody.status_code == 200, path
                continue
            assert nobody.status_code == 401, (method, path)
            needed = "admin" if path.startswith("/admin") else "metrics" if path == "/metrics" else "infer"
            for scope, client in clients.items():
                if scope not in ("nobody", needed) and not (path == "/metrics" and scope == "admin"):
                    assert (await client.request(method, url)).status_code == 403, (method, path, scope)


def ways_to_name(name: str, version: str) -> Iterator[str]:
    yield from (name, f"{name}@{version}", f"mix({name}*0.5,sql*0.5)", f"gate(arrow,k=1;sql,{name})", f"{name}:0.5")
    yield from (f"mix({name}@{version}*1)", f"ensemble({name},sql)", f"gate(uniform;{name})", name.upper(), f" {name}")


@pytest.mark.parametrize("bounds", [{"experts": ["sql"]}, {"tags": ["sql"]}, {"tenant": "bank"}], ids=str)
async def test_a_key_learns_nothing_of_an_expert_that_it_may_not_see(tmp_path: Path, bounds: dict[str, Any]) -> None:
    async with running_gateway(tmp_path / "home") as running:
        ids = await register_examples(running, tmp_path, **{HIDDEN: "insurer", "sql": "bank"})
        version = ids[HIDDEN].partition("@")[2]
        async with with_keys(running, confined={"scopes": {"infer"}} | bounds) as clients:
            client = clients["confined"]
            body: dict[str, Any] = {"messages": [{"role": "user", "content": EXAMPLES[HIDDEN][0]}], "max_tokens": 2}
            body |= {"prompt": EXAMPLES[HIDDEN][0], "input": EXAMPLES[HIDDEN][0]}
            asked = 0
            for method, path in await operations(clients["nobody"]):
                if path.startswith("/admin") or path in OPEN or path == "/metrics":
                    continue
                pairs = zip(ways_to_name(HIDDEN, version), ways_to_name(UNKNOWN, "0" * 8), strict=True)
                for hidden, unknown in pairs:
                    answers = []
                    for name in (hidden, unknown):
                        sent = {"json": body | {"model": name}} if method == "POST" else {}
                        answers.append(await client.request(method, filled(path, name), **sent))
                    texts = [
                        answer.text.replace(name, "?").replace(v, "!").replace(e, "?")
                        for answer, name, v, e in zip(
                            answers, (hidden, unknown), (version, "0" * 8), (HIDDEN, UNKNOWN), strict=True
                        )
                    ]
                    assert answers[0].status_code == answers[1].status_code, (method, path, hidden)
                    if path != "/v1/models":
                        assert answers[0].status_code >= 400, (method, path, hidden)
                    assert texts[0] == texts[1], (method, path, hidden)
                    asked += 1
                if method == "POST":  # what a policy decides, and what it says of that
                    for extra in ({}, {"preference": {HIDDEN: 1}}, {"exclude_experts": ["sql"]}):
                        answer = await client.post(path, json=body | {"model": "auto"} | extra)
                        seen = answer.text.replace(EXAMPLES[HIDDEN][0], "") + str(answer.headers)
                        assert not re.search(rf"\b{HIDDEN}\b", seen), (path, extra)
            assert asked > 80


async def test_a_policy_is_asked_only_by_whom_it_is_for(running: Running) -> None:
    keys: dict[str, dict[str, Any]] = {
        "operator": {"scopes": {"infer", "admin"}},
        "bank": {"tenant": "bank"},
        "insurer": {"tenant": "insurer"},
        "tagged": {"tags": ["sql"]},
    }
    async with with_keys(running, **keys) as clients:
        for name, bounds in (("ledger", {"tenant": "bank"}), ("data", {"tags": ["data"]})):
            order = {"name": name, "router": "knn"} | bounds
            job = (await clients["operator"].post("/admin/policies", json=order)).json()
            await job_ended(clients["operator"], f"/admin/jobs/{job['id']}")
        seen = {}
        for who in keys:
            listed = {entry["id"] for entry in (await clients[who].get("/v1/models")).json()["data"]}
            asked = {"messages": [{"role": "user", "content": "hello"}]}
            for name in ("ledger", "data", "auto"):
                status = (await clients[who].post("/v1/chat/completions", json=asked | {"model": name})).status_code
                assert status == (200 if name in listed else 404)
            seen[who] = listed & {"ledger", "data", "auto"}
    everything = {"ledger", "data", "auto"}
    assert seen == {
        "operator": everything,
        "bank": everything,
        "insurer": {"data", "auto"},
        "tagged": {"ledger", "auto"},
    }


@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keyed"])
async def test_no_generated_request_ends_in_a_server_error(tmp_path: Path, keyed: bool) -> None:
    async with running_gateway(tmp_path / "home") as running, contextlib.AsyncExitStack() as stack:
        await register_examples(running, tmp_path)
        headers = []
        if keyed:
            clients = await stack.enter_async_context(with_keys(running, all={"scopes": {"infer", "admin"}}))
            headers = ["--header", f"Authorization: {clients['all'].headers['authorization']}"]
        checks = "not_a_server_error,status_code_conformance,content_type_conformance"
        num = os.environ.get("MOERGATE_FUZZ_EXAMPLES", "6")
        command = [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json"),
            *("--max-examples", num, "--phases", "fuzzing", "--workers", "1", "--suppress-health-check", "all"),
            *("--checks", checks, *headers),
        ]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-4000:]
        assert "passed" in done.stdout
