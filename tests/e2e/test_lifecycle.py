"""Versions come and go: probes, canaries, promotion, rollback, conversations, and what the engines are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from server.engine.fake import FakeEngine
from tests.support.adapters import make_adapter, manifest
from tests.support.servers import Running, running_gateway
from tests.support.waiting import eventually

PROMPTS = ("list all customers in Berlin", "total revenue per product", "how many orders in May")


async def register(
    http: httpx.AsyncClient, folder: Path, seed: int, name: str = "sql", **publish: Any
) -> httpx.Response:
    body = manifest(name, make_adapter(folder / f"{name}-{seed}", seed=seed), *PROMPTS)
    return await http.post("/admin/adapters", json=body | ({"publish": publish} if publish else {}))


async def answered_by(http: httpx.AsyncClient, *turns: str, model: str = "sql") -> str:
    """The recipe that answered a conversation; every second turn is the assistant's."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    response = await http.post("/v1/chat/completions", json={"model": model, "messages": messages})
    return response.headers.get("x-moergate-recipe", str(response.status_code))


async def state_of(http: httpx.AsyncClient, ref: str) -> str:
    return str((await http.get(f"/admin/adapters/{ref}")).json()["state"])


async def becomes(http: httpx.AsyncClient, ref: str, state: str) -> None:
    async def is_so() -> bool:
        return await state_of(http, ref) == state

    await eventually(is_so, message=f"{ref} is not {state}")


@pytest.fixture
async def http(running: Running) -> Any:
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        yield client


async def test_a_canary_gets_its_share_of_conversations_until_it_is_promoted(
    http: httpx.AsyncClient, tmp_path: Path
) -> None:
    old = (await http.get("/admin/adapters/sql")).json()["id"]
    new = (await register(http, tmp_path, 7, to="canary", share=0.3)).json()
    assert (new["state"], new["share"]) == ("canary", 0.3)
    assert await answered_by(http, "x", model=new["id"]) == new["id"]
    assert await answered_by(http, "x", model=old) == old
    first = {text: await answered_by(http, text) for text in (f"{PROMPTS[0]} {i}" for i in range(200))}
    assert set(first.values()) == {old, new["id"]}
    num_canary = sum(recipe == new["id"] for recipe in first.values())
    assert 35 <= num_canary <= 85  # 60 are expected, 6.5 is the standard deviation
    routed = {text: await answered_by(http, text, model="auto") for text in list(first)[:20]}
    assert all(recipe == first[text] for text, recipe in routed.items())
    one = next(iter(first))
    assert first[one] in await answered_by(http, one, model="mix(sql*0.5,dates*0.5)")
    await http.post(f"/admin/adapters/{new['id']}/promote", json={"share": 0.9})
    for text, recipe in first.items():  # who began on one version stays on it
        assert await answered_by(http, text, "an answer", "go on") == recipe
    promoted = (await http.post(f"/admin/adapters/{new['id']}/promote", json={"reason": "better"})).json()
    assert (promoted["state"], promoted["share"], await state_of(http, old)) == ("active", None, "draining")
    began_old = next(text for text, recipe in first.items() if recipe == old)
    assert await answered_by(http, began_old, "an answer", "go on", "and", "on") == old
    assert await answered_by(http, "a new conversation") == new["id"]
    assert await answered_by(http, "x", model=old) == "404"
    metrics = (await http.get("/metrics")).text
    assert 'moergate_canary_requests_total{expert="sql",role="canary",status="200"}' in metrics
    assert 'moergate_library_versions{state="draining"} 1.0' in metrics


async def test_withdraw_and_roll_back(http: httpx.AsyncClient, tmp_path: Path) -> None:
    old = (await http.get("/admin/adapters/sql")).json()["id"]
    new = (await register(http, tmp_path, 7, to="canary", share=1.0)).json()["id"]
    assert await answered_by(http, "x") == new
    assert (await http.post("/admin/adapters/sql/withdraw", json={"reason": "slow"})).json()["state"] == "ready"
    assert await answered_by(http, "y") == old
    assert (await http.post(f"/admin/adapters/{new}/withdraw")).status_code == 409
    assert (await http.post(f"/admin/adapters/{new}/promote")).json()["state"] == "active"
    back = await http.post("/admin/adapters/sql/rollback", json={"reason": "worse"})
    assert (back.json()["id"], back.json()["state"]) == (old, "active")
    assert await answered_by(http, "z") == old
    versions = (await http.get("/admin/adapters/sql/versions")).json()["data"]
    assert {v["id"]: v["state"] for v in versions} == {old: "active", new: "draining"}
    audit = (await http.get("/admin/audit", params={"name": new})).json()["data"]
    steps = [(e["from"], e["to"]) for e in reversed(audit)]
    assert steps == [
        (None, "registered"),
        ("registered", "validating"),
        ("validating", "ready"),
        ("ready", "canary"),
        ("canary", "ready"),
        ("ready", "active"),
        ("active", "draining"),
    ]
    assert [e["reason"] for e in audit if e["to"] in ("ready", "canary")] == ["slow", "probed", "probed"]
    older = (await http.get("/admin/audit", params={"before": audit[0]["number"], "limit": 1})).json()["data"]
    assert older[0]["number"] < audit[0]["number"]
    assert (await http.post("/admin/adapters/nobody/rollback")).status_code == 404
    assert (await http.post("/admin/adapters/dates/rollback")).status_code == 409
    assert (await http.post(f"/admin/adapters/{old}/promote", json={"share": 2})).status_code == 400


async def test_an_expert_that_does_nothing_is_rejected_with_the_figures(
    running: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    ready = (await register(http, tmp_path, 8, "idle", to="ready")).json()
    report = ready["report"]
    assert report["passed"] and report["base_distance"] > 0.1 > report["noise"]
    assert report["nearest_other"]["distance"] > 0
    assert (await http.delete(f"/admin/adapters/{ready['id']}")).json()["state"] == "retired"
    running.engine.without_effect.add(ready["id"])
    refused = await register(http, tmp_path, 8, "idle")
    assert refused.status_code == 400
    (problem,) = refused.json()["error"]["problems"]
    assert problem["where"] == "probe.effect"
    shown = (await http.get(f"/admin/adapters/{ready['id']}")).json()
    assert (shown["state"], shown["report"]["passed"], shown["report"]["base_distance"]) == ("rejected", False, 0.0)
    assert ready["id"] in [r["id"] for r in (await http.get("/admin/adapters?state=rejected")).json()["data"]]
    assert await answered_by(http, "x", model=ready["id"]) == "404"
    assert await answered_by(http, "x", model="idle") == "404"
    running.engine.without_effect.clear()
    assert (await register(http, tmp_path, 8, "idle")).json()["state"] == "active"


async def test_a_quality_gate(http: httpx.AsyncClient, tmp_path: Path) -> None:
    samples = [{"prompt": "x", "answer": "word0 word1"}, {"prompt": "y", "answer": "something else"}]
    gate = {"samples": samples, "min_score": 0.6, "max_tokens": 2}
    refused = await register(http, tmp_path, 9, "graded", gate=gate)
    assert "scores 0.500" in refused.json()["error"]["problems"][0]["what"]
    passed = await register(http, tmp_path, 9, "graded", gate=gate | {"min_score": 0.5})
    assert (passed.json()["state"], passed.json()["report"]["score"]) == ("active", 0.5)


async def test_what_is_registered_while_no_engine_is_ready_is_probed_when_one_is(tmp_path: Path) -> None:
    engine = FakeEngine(healthy=False)
    async with running_gateway(tmp_path / "home", engine, ready=False) as running:
        await eventually(lambda: not running.gateway.watcher.problem)
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
            record = (await register(http, tmp_path, 1)).json()
            assert record["state"] == "registered"
            engine.healthy = True
            await becomes(http, record["id"], "active")

            async def is_offered() -> bool:
                return await answered_by(http, "x") == record["id"]

            await eventually(is_offered)  # the catalog follows the record


async def test_what_an_ended_gateway_left_is_taken_up_by_the_next(tmp_path: Path) -> None:
    engine = FakeEngine(healthy=False)
    async with running_gateway(tmp_path / "home", engine, ready=False) as running:
        await eventually(lambda: not running.gateway.watcher.problem)
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
            record = (await register(http, tmp_path, 1)).json()
    async with running_gateway(tmp_path / "home") as running, httpx.AsyncClient(base_url=running.url) as http:
        await becomes(http, record["id"], "active")


async def test_without_probes_nothing_is_asked(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home", probe_adapters=False) as running:
        async with httpx.AsyncClient(base_url=running.url) as http:
            record = (await register(http, tmp_path, 1)).json()
        assert (record["state"], record["report"]) == ("active", None)
        assert not running.engine.seen


async def test_replaced_versions_are_kept_for_a_rollback_and_removed_ones_are_not(tmp_path: Path) -> None:
    settings = {"kept_versions": 1, "conversation_idle_s": 0.0}
    async with running_gateway(tmp_path / "home", **settings) as running:
        library = running.gateway.library
        async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
            ids = []
            for seed in range(3):
                ids.append((await register(http, tmp_path, seed)).json()["id"])
                for earlier in ids[:-1]:
                    await becomes(http, earlier, "retired")
            records = [await library.find(expert_id) for expert_id in ids]

            async def is_purged() -> bool:
                return (await library.find(ids[0])).is_purged

            await eventually(is_purged)
            assert [library.folder_of(r).exists() for r in records] == [False, True, True]
            assert (await http.post("/admin/adapters/sql/rollback")).json()["id"] == ids[1]
            assert (await http.post(f"/admin/adapters/{ids[0]}/promote")).status_code == 409
            assert (await http.delete("/admin/adapters/sql")).status_code == 200
            await eventually(lambda: not any(library.folder_of(r).exists() for r in records))
            assert (await http.delete("/admin/adapters/sql")).status_code == 404
            versions = (await http.get("/admin/adapters/sql/versions")).json()["data"]
            assert {v["id"]: v["state"] for v in versions} == dict.fromkeys(ids, "retired")
        told = [seen.body.decode() for seen in running.engine.seen if seen.path == "/v1/unload_lora_adapter"]
        assert all(any(expert_id in body for body in told) for expert_id in ids)


async def test_a_version_in_the_shadow_is_decided_on_and_gets_nothing(
    running: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    old = (await http.get("/admin/adapters/sql")).json()["id"]
    body = manifest("sql", make_adapter(tmp_path / "new", seed=20), PROMPTS[0], "name the largest whale in the sea")
    new = (await http.post("/admin/adapters", json=body | {"publish": {"to": "canary", "share": 0}})).json()["id"]
    body = manifest("birds", make_adapter(tmp_path / "birds", seed=21), "which owl hunts by day", "song of the wren")
    birds = (await http.post("/admin/adapters", json=body | {"publish": {"to": "canary", "share": 0}})).json()["id"]

    async def tallies() -> dict[str, Any]:
        return {each.pop("id"): each for each in (await http.get("/admin/shadow")).json()["data"]}

    async def is_tallied() -> bool:
        assert await answered_by(http, "which owl hunts by day", model="auto") == "base"
        return (await tallies())[birds]["gained"] != {}

    await eventually(is_tallied)
    assert await answered_by(http, PROMPTS[0], model="auto") == old
    await http.post("/v1/route", json={"prompt": PROMPTS[0]})  # is not counted
    whale = await answered_by(http, "name the largest whale in the sea", model="auto")
    assert whale.partition("@")[0] in ("base", "dates")
    assert await answered_by(http, "x", model="sql") == old
    assert await answered_by(http, "x", model="birds") == "404"
    found = await tallies()
    assert found[new] == {"kept": 1, "gained": {whale.partition("@")[0]: 1}, "lost": {}}
    assert set(found[birds]["gained"]) == {"base"}
    metrics = (await http.get("/metrics")).text
    assert 'moergate_shadow_decisions_total{change="gained",expert="sql",policy="auto"} 1.0' in metrics
    await http.post(f"/admin/adapters/{new}/withdraw")
    assert new not in await tallies()
