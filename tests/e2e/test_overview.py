"""What operators see over HTTP: the overview after traffic, the map, the leaderboard, and bad input to each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import EXAMPLES
from tests.support.adapters import make_adapter, manifest
from tests.support.servers import Running


@pytest.fixture
async def http(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        yield client


async def test_the_overview_follows_traffic_states_and_residency(
    running: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    for model, text in (("auto", EXAMPLES["sql"][0]), ("auto", EXAMPLES["sql"][1]), ("base", "zebra")):
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    body = manifest("sql", make_adapter(tmp_path / "new", seed=7), *EXAMPLES["sql"]) | {"publish": {"to": "ready"}}
    ready = (await http.post("/admin/adapters", json=body)).json()["id"]
    found = (await http.get("/admin/overview")).json()
    rows = {row["id"]: row for row in found["experts"]}
    sql = next(row for row in rows.values() if row["name"] == "sql" and row["state"] == "active")
    assert (sql["traffic"]["requests"], sql["traffic"]["errors"], sql["traffic"]["output_tokens"]) == (2, 0, 8)
    assert sql["traffic"]["p50_s"] > 0 and sql["probed"] is True
    assert (rows[ready]["state"], rows[ready]["traffic"]) == ("ready", None)
    assert found["traffic"]["base"]["requests"] == 1
    assert (found["ready"], found["missing"], found["base"]) == (True, {}, "tiny-base")
    (policy,) = found["policies"]
    assert policy["name"] == "auto"
    assert policy["decisions"] >= 2  # explanations count, too
    (replica,) = found["replicas"]
    assert replica["ready"] and replica["has_plugin"]
    limited = (await http.get("/admin/overview", params={"limit": 1})).json()
    assert (len(limited["experts"]), limited["num_versions"]) == (1, 3)
    assert (await http.get("/admin/overview", params={"limit": 0})).status_code == 400


async def test_the_map_and_where_prompts_fall_on_it(http: httpx.AsyncClient) -> None:
    shown = (await http.get("/admin/map")).json()
    assert shown["experts"] == ["dates", "sql"]
    assert {point["text"] for point in shown["points"]} == {text for each in EXAMPLES.values() for text in each}
    assert (await http.get("/admin/map")).json() == shown
    placed = (await http.post("/admin/map/place", json={"texts": [EXAMPLES["dates"][0], "zebra"]})).json()
    assert placed["version"] == shown["version"]
    assert placed["data"][0]["nearest"][0]["expert"] == "dates"
    assert len(placed["data"]) == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"texts": []}', b'{"texts": [""]}', b'{"texts": "x"}', b'{"texts": ["x"], "y": 1}'],
)
async def test_bad_prompts_to_place_are_told(http: httpx.AsyncClient, body: bytes) -> None:
    refused = await http.post("/admin/map/place", content=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"


async def test_too_many_prompts_and_odd_ones(http: httpx.AsyncClient) -> None:
    assert (await http.post("/admin/map/place", json={"texts": ["x"] * 101})).status_code == 400
    assert (await http.post("/admin/map/place", content=b"x" * (5 << 20))).status_code == 413
    odd = await http.post("/admin/map/place", content=b'{"texts": ["\\u0000", " ", "\\ud83d\\ude00", "x\\u202e"]}')
    assert odd.status_code == 200 and len(odd.json()["data"]) == 4


async def test_a_leaderboard_that_is_none_is_refused_and_the_old_one_stays(http: httpx.AsyncClient) -> None:
    assert "moergate compare" in (await http.get("/admin/leaderboard")).json()["advice"]
    about = {"folders": ["t"], "split": "val", "base": "b", "num_prompts": 1, "made_at": "now"}
    good = {
        "about": about,
        "columns": [{"key": "policy", "title": "policy", "meaning": "name"}],
        "rows": [{"shown": {"policy": "auto"}, "values": {"policy": "auto"}}],
    }
    assert (await http.put("/admin/leaderboard", json=good)).json()["num_rows"] == 1
    for bad in (b"", b"{", b"{}", b'{"about": NaN}'):
        refused = await http.put("/admin/leaderboard", content=bad)
        assert refused.status_code == 400 and "leaderboard.json" in refused.json()["error"]["message"]
    shown = (await http.get("/admin/leaderboard")).json()
    assert shown["published_by"] == "anonymous"
    assert shown["leaderboard"]["rows"] == good["rows"]
