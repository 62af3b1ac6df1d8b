"""Policies over HTTP and from the command line: fitted, watched, compared; scores reported; bad input refused."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from routers.base import Artefact, FitData, Progress
from routers.methods.knn import KnnConfig, KnnRouter
from server.engine.fake import FakeEngine
from tests.e2e.conftest import EXAMPLES, register_examples
from tests.support.adapters import make_adapter, manifest
from tests.support.asking import job_ended
from tests.support.browser import Browser
from tests.support.console import opened
from tests.support.processes import run_cli
from tests.support.servers import Running, running_gateway
from tests.support.waiting import eventually


async def fit(client: httpx.AsyncClient, **order: Any) -> dict[str, Any]:
    response = await client.post("/admin/policies", json=order)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return await job_ended(client, f"/admin/jobs/{job['id']}")


async def ask(client: httpx.AsyncClient, model: str, text: str, **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    response = await client.post("/v1/route", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.fixture
async def client(running: Running) -> Any:
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as opened:
        yield opened


async def test_a_policy_is_made_used_shown_and_removed(client: httpx.AsyncClient) -> None:
    job = await fit(client, name="mine", router="centroid", options={"threshold": -1})
    assert (job["state"], job["error"]) == ("succeeded", None)
    shown = (await client.get("/admin/policies/mine")).json()
    assert (shown["state"], shown["router"], shown["num_experts"]) == ("ready", "centroid", 2)
    assert shown["provenance"]["fitted_at"]
    assert "mine" in {model["id"] for model in (await client.get("/v1/models")).json()["data"]}
    body = {"model": "mine", "messages": [{"role": "user", "content": EXAMPLES["sql"][0]}]}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.headers["x-moergate-policy"] == "mine"
    assert answer.headers["x-moergate-recipe"].startswith("sql@")
    assert (await client.delete("/admin/policies/mine")).status_code == 200
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 404
    assert (await client.get("/admin/policies/mine")).status_code == 404


@pytest.fixture
async def behind(running: Running, client: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[threading.Event]:
    """The policy auto lacks a third expert, poems, until the event is set."""
    free, fit_knn = threading.Event(), KnnRouter.fit

    def held_up(config: KnnConfig, data: FitData, progress: Progress) -> Artefact:
        free.wait()
        return fit_knn(config, data, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnnRouter, "fit", held_up)
        adapter = make_adapter(tmp_path / "poems", seed=9)
        response = await client.post("/admin/adapters", json=manifest("poems", adapter, "write a sonnet"))
        assert response.status_code == 201, response.text
        yield free
        free.set()


async def test_a_policy_is_following_until_it_knows_every_expert(
    client: httpx.AsyncClient, running: Running, behind: threading.Event
) -> None:
    shown = (await client.get("/admin/policies/auto")).json()
    assert (shown["state"], shown["num_experts"], shown["num_missing_experts"]) == ("following", 2, 1)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(shown["behind_since"])) < timedelta(minutes=5)
    fields = ("name", "state", "num_missing_experts", "behind_since")
    row = tuple(shown[field] for field in fields)
    for path, key in [("/admin/policies", "data"), ("/admin/overview", "policies")]:
        (listed,) = (await client.get(path)).json()[key]
        assert tuple(listed[field] for field in fields) == row
    assert 'moergate_policy_missing_experts{policy="auto"} 1.0' in (await client.get("/metrics")).text
    listed = await asyncio.to_thread(run_cli, "policies", "list", "--url", running.url)
    assert listed.returncode == 0, listed.stderr
    assert "following" in listed.stdout
    assert f"1 expert of the library, since {shown['behind_since']}" in listed.stdout

    behind.set()

    async def is_ready() -> bool:
        nonlocal shown
        shown = (await client.get("/admin/policies/auto")).json()
        return bool(shown["state"] == "ready")

    await eventually(is_ready, within=60)
    assert (shown["num_experts"], shown["num_missing_experts"], shown["behind_since"]) == (3, 0, None)
    assert 'moergate_policy_missing_experts{policy="auto"} 0.0' in (await client.get("/metrics")).text


async def test_the_console_shows_what_a_policy_lacks(
    running: Running, browser: Browser, behind: threading.Event
) -> None:
    cells = (
        "Object.fromEntries([...document.querySelectorAll('#policies-table thead th')].map((head, place) => "
        "[head.innerText, document.querySelector('#policies-table tbody tr')?.cells[place].innerText]))"
    )
    async with browser.page() as page:
        await opened(page, running, "experts", "#policies-table tbody tr", 1)
        found = await page.js(cells)
        assert (found["State"], found["Experts"], found["Missing"]) == ("following", "2", "1")
        title = await page.js("document.querySelector('#policies-table tbody [title^=since]').title")
        assert datetime.fromisoformat(title.removeprefix("since "))
        behind.set()
        await page.until(f"({cells})['State'] === 'ready'")
        found = await page.js(cells)
        assert (found["Experts"], found["Missing"]) == ("3", "0")


async def test_a_caller_may_write_a_threshold_behind_the_policy(client: httpx.AsyncClient) -> None:
    text = EXAMPLES["sql"][0]
    assert (await ask(client, "auto:2", text))["recipe"] == "base"
    assert (await ask(client, "auto:-1", "nothing like it"))["recipe"] != "base"
    body = {"model": "auto:high", "messages": [{"role": "user", "content": text}]}
    refused = await client.post("/v1/route", json=body)
    assert refused.status_code == 400
    assert "auto:0.3" in refused.json()["error"]["message"]


async def test_fields_of_a_request_that_routers_read(client: httpx.AsyncClient) -> None:
    text = EXAMPLES["sql"][0]
    for name, router in [("told", "oracle"), ("wish", "preference"), ("vote", "retrieval_of_experts")]:
        assert (await fit(client, name=name, router=router))["state"] == "succeeded"
    assert (await ask(client, "told", text, task_id="dates"))["recipe"].startswith("dates@")
    assert (await ask(client, "wish", text, preference={"dates": 3, "sql": 1}))["recipe"].startswith("mix(dates@")
    for prompt in EXAMPLES["dates"]:
        await ask(client, "vote", prompt, task_id="conversation")
    assert (await ask(client, "vote", EXAMPLES["sql"][0], task_id="conversation"))["recipe"].startswith("dates@")
    assert (await ask(client, "vote", EXAMPLES["sql"][0], task_id="another"))["recipe"].startswith("sql@")
    body = {"model": "vote", "messages": [{"role": "user", "content": EXAMPLES["sql"][0]}], "task_id": "conversation"}
    served = await client.post("/v1/chat/completions", json=body)  # which explanations of its task do not sway
    assert served.headers["x-moergate-recipe"].startswith("sql@")
    assert "sql" not in str(await ask(client, "auto", text, exclude_experts=["sql"]))
    for bad in ({"task_id": 3}, {"preference": {"sql": -1}}, {"preference": []}, {"exclude_experts": "sql"}):
        body = {"model": "wish", "messages": [{"role": "user", "content": text}], **bad}
        refused = await client.post("/v1/route", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == next(iter(bad))


async def test_the_base_chooses_where_a_router_asks_it(client: httpx.AsyncClient, running: Running) -> None:
    assert (await fit(client, name="llm", router="llm_selector"))["state"] == "succeeded"
    found = await ask(client, "llm", "anything at all")
    (asked,) = [json.loads(seen.body) for seen in running.engine.seen if b"structured_outputs" in seen.body]
    first = asked["structured_outputs"]["choice"][0]  # what the double answers
    assert found["recipe"].startswith(f"{first}@")
    assert asked["model"] == "base"
    assert "anything at all" in asked["messages"][0]["content"]


async def test_what_is_wrong_with_an_order_is_said(client: httpx.AsyncClient) -> None:
    for order, what in [
        ({"name": "x", "router": "knm"}, "knn"),
        ({"name": "x", "router": "knn", "options": {"kk": 1}}, "kk"),
        ({"name": "X y", "router": "knn"}, "a-z"),
        ({"name": "sql", "router": "knn"}, "expert"),
        ({"name": "auto", "router": "centroid"}, "settings"),
        ({"name": "x", "router": "best_single"}, "moergate score"),
        ({"name": "x", "router": "knn", "subset": {"method": "best", "size": 1}}, "method"),
        ({"name": "x", "router": "knn", "samples": [{"prompt": "p", "answer": "a", "metric": "m"}]}, "exact_match"),
        ({"router": "knn"}, "name"),
    ]:
        response = await client.post("/admin/policies", json=order)
        assert 400 <= response.status_code < 500, (order, response.text)
        assert what in response.json()["error"]["message"], (order, response.text)
    assert [each["name"] for each in (await client.get("/admin/policies")).json()["data"]] == ["auto"]


async def test_a_learned_mix_asks_the_engine(client: httpx.AsyncClient, running: Running) -> None:
    samples = [{"prompt": "add two and two", "answer": "four five", "task": "sums"}]
    order = {"name": "blend", "router": "learned_mix", "samples": samples}
    running.engine.seen.clear()
    job = await fit(client, **order)
    assert job["state"] == "succeeded", job["error"]
    asked = [json.loads(seen.body) for seen in running.engine.seen if b"prompt_logprobs" in seen.body]
    assert len({body["model"] for body in asked}) == len(asked) > 1
    assert all(body["messages"][-1] == {"role": "assistant", "content": "four five"} for body in asked)
    running.engine.seen.clear()
    assert (await fit(client, **order))["state"] == "succeeded"
    assert not [seen for seen in running.engine.seen if b"prompt_logprobs" in seen.body]


async def test_a_policy_that_the_engine_cannot_execute_is_left_out_of_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOERGATE_CACHE_DIR", str(tmp_path / "cache"))
    row = {"prompt": EXAMPLES["sql"][0], "answer": "word0 word1"}
    (tmp_path / "sql.jsonl").write_text(json.dumps(row))
    out = tmp_path / "out"
    async with running_gateway(tmp_path / "home", FakeEngine(has_plugin=False)) as running:
        await register_examples(running, tmp_path)
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            assert (await fit(client, name="all", router="uniform"))["state"] == "succeeded"
        asked = ("--tasks", str(tmp_path / "sql.jsonl"), "--max-tokens", "2", "--out", str(out), "--publish")
        compared = await asyncio.to_thread(run_cli, "compare", *asked, "--url", running.url)
    assert compared.returncode == 0, compared.stderr
    assert "Not compared: all (mix(" in compared.stderr
    assert "without Moergate's plugin" in compared.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {row["policy"] for row in rows} == {"base", "oracle", "auto"}
    assert "Not compared: all (mix(" in (out / "leaderboard.md").read_text()
    assert list(json.loads((out / "leaderboard.json").read_text())["about"]["left_out"]) == ["all"]


async def test_scores_and_a_comparison_from_the_command_line(
    running: Running, client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOERGATE_CACHE_DIR", str(tmp_path / "cache"))
    for name, prompts in EXAMPLES.items():
        folder = tmp_path / "tasks" / name
        folder.mkdir(parents=True)
        rows = [json.dumps({"prompt": prompt, "answer": "word0 word1"}) for prompt in prompts]
        (folder / "train.jsonl").write_text("\n".join(rows))
        (folder / "val.jsonl").write_text("\n".join(rows))
    (tmp_path / "tasks" / "odd").mkdir()
    (tmp_path / "tasks" / "odd" / "val.jsonl").write_text('{"prompt": "zebra", "answer": "", "metric": "none"}\n{bad\n')
    tasks = ("--tasks", str(tmp_path / "tasks"), "--url", running.url)

    async def cli(*arguments: str) -> Any:
        return await asyncio.to_thread(run_cli, *arguments)

    scored = await cli("score", *tasks, "--max-tokens", "2", "--losses", "--json")
    assert scored.returncode == 0, scored.stderr
    assert {model["mean_score"] for model in json.loads(scored.stdout)["models"]} == {1.0}
    fitted = await cli("fit", "best", "--router", "best_single", "--url", running.url)
    assert fitted.returncode == 0, fitted.stderr
    assert "best (best_single) is fitted to 2 experts" in fitted.stdout
    refused = await cli("compare", *tasks, "--max-tokens", "2", "--out", str(tmp_path / "out"))
    assert refused.returncode == 2
    assert "line 2: not JSON" in refused.stderr
    compared = await cli("compare", *tasks, "--max-tokens", "2", "--out", str(tmp_path / "out"), "--skip-bad-rows")
    assert compared.returncode == 0, compared.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 7  # base, oracle, auto and best on six prompts and one that is out of scope
    assert {row["policy"] for row in rows} == {"base", "oracle", "auto", "best"}
    assert {row["recipe"].partition("@")[0] for row in rows if row["policy"] == "oracle"} == {"sql", "dates", "base"}
    leaderboard = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "| auto | 100.0" in leaderboard
    assert "1 rows were skipped" in leaderboard
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "__DATA__" not in page
    assert "</script" not in page.partition("const D =")[2].partition("\n")[0]
    running.engine.seen.clear()
    assert (await client.get("/admin/leaderboard")).json()["leaderboard"] is None
    more = ("--skip-bad-rows", "--publish")
    again = await cli("compare", *tasks, "--max-tokens", "2", "--out", str(tmp_path / "out"), *more)
    assert again.returncode == 0
    assert f"{running.url}/console#leaderboard" in again.stdout
    published = (await client.get("/admin/leaderboard")).json()["leaderboard"]
    assert {row["values"]["policy"] for row in published["rows"]} == {"base", "oracle", "auto", "best"}
    assert published == json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert not [seen for seen in running.engine.seen if seen.path == "/v1/chat/completions"]
    listed = await cli("policies", "list", "--url", running.url)
    assert "best_single" in listed.stdout
    before = (await client.get("/admin/policies/best")).json()["data_version"]
    row = {"prompt": "a new one", "answer": "x", "models": {"base": {"score": 1}}}
    assert (await client.post("/admin/scores", json={"rows": [row]})).status_code == 200

    async def has_followed() -> bool:
        return bool((await client.get("/admin/policies/best")).json()["data_version"] != before)

    await eventually(has_followed)  # what learns from scores follows them without being asked
