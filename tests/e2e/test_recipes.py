"""Recipes in ``model``: bound to versions, confined to what the key may use, long ones sent by their hash."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from adapters_registry.disk.recipe_texts import RecipeTexts
from server.engine.fake import FakeEngine
from server.engine.recipes import LONG_TEXT_CHARS
from tests.e2e.conftest import register_examples
from tests.e2e.test_admin import add_key
from tests.support.adapters import make_adapter, manifest
from tests.support.servers import Running, running_gateway


@pytest.fixture
async def ids(running: Running, tmp_path: Path) -> dict[str, str]:
    async with httpx.AsyncClient(base_url=running.url) as http:
        listed = (await http.get("/admin/adapters")).json()["data"]
    return {entry["name"]: entry["id"] for entry in listed}


@pytest.fixture
async def http(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as opened:
        yield opened


def executed(running: Running) -> str:
    return str(json.loads(running.engine.seen[-1].body)["model"])


async def test_names_are_bound_and_the_caller_sees_what_was_asked(running: Running, ids: dict[str, str]) -> None:
    asked = "mix(sql*0.620,dates*0.38)"
    async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="none") as client:
        raw = await client.chat.completions.with_raw_response.create(
            model=asked, messages=[{"role": "user", "content": "hi"}]
        )
    canonical = f"mix({ids['dates']}*0.38,{ids['sql']}*0.62)"
    assert raw.parse().model == asked
    assert (executed(running), raw.headers["x-moergate-recipe"]) == (canonical, canonical)


async def test_a_gate_is_bound_too(http: httpx.AsyncClient, running: Running, ids: dict[str, str]) -> None:
    asked = f"gate(arrow,k=1;{ids['sql']},dates)"
    assert (await http.post("/v1/completions", json={"model": asked, "prompt": "x"})).status_code == 200
    assert executed(running) == f"gate(arrow,k=1,t=1;{ids['dates']},{ids['sql']})"


@pytest.mark.parametrize(
    ("model", "status", "hint"),
    [
        ("mix(sql*0.5,nobody*0.5)", 404, "'nobody' does not exist"),
        ("mix(sql*0.5,sql@00000000*0.5)", 404, "does not exist"),
        ("mix(sql*-101)", 400, "from -100 to 100"),
        ("mix(sql*0)", 400, "every weight rounds to zero"),
        ("gate(arrow,k=3;sql,dates)", 400, "k=3 must be from 1"),
        ("gate(phatgoose;sql,dates)", 400, "unknown gate 'phatgoose'"),
        ("ensemble(sql*0.5,dates*0.5)", 400, "unknown recipe ensemble"),
        ("set:0123456789abcdef", 404, "does not exist"),
        ("set:../../etc/passwd", 400, "16 hex digits"),
        ("mix(sql*0.5", 400, "expected"),
    ],
)
async def test_bad_recipes_are_refused_with_the_reason(
    model: str, status: int, hint: str, http: httpx.AsyncClient, running: Running
) -> None:
    before = len(running.engine.seen)
    response = await http.post("/v1/completions", json={"model": model, "prompt": "x"})
    assert response.status_code == status, response.text
    assert hint in response.json()["error"]["message"]
    assert len(running.engine.seen) == before


async def test_a_hidden_expert_is_an_unknown_one_in_every_recipe(running: Running, http: httpx.AsyncClient) -> None:
    key = await add_key(running, "infer", experts=("s*",))
    for model in ("mix(sql*0.5,dates*0.5)", "gate(arrow;sql,dates)"):
        unknown = model.replace("dates", "datez")
        answers = [
            (await http.post("/v1/completions", json={"model": name, "prompt": "x"}, headers=key)).json()["error"]
            for name in (model, unknown)
        ]
        assert answers[0]["message"].replace("dates", "datez") == answers[1]["message"]
        assert answers[0]["code"] == answers[1]["code"] == "model_not_found"
    assert (await http.post("/v1/completions", json={"model": "mix(sql*1)", "prompt": "x"}, headers=key)).is_success


async def test_a_long_recipe_goes_by_its_hash_and_comes_back_by_it(
    running: Running, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    names = [f"expert-with-a-rather-long-name-{number:02d}" for number in range(16)]
    for number, name in enumerate(names):
        adapter = make_adapter(tmp_path / name, seed=100 + number)
        assert (await http.post("/admin/adapters", json=manifest(name, adapter))).status_code == 201
    asked = f"mix({','.join(f'{name}*0.1' for name in names)})"
    raw = await http.post("/v1/completions", json={"model": asked, "prompt": "x"})
    assert raw.status_code == 200, raw.text
    recipe = raw.headers["x-moergate-recipe"]
    assert len(recipe) > LONG_TEXT_CHARS
    by_hash = f"set:{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    assert executed(running) == by_hash
    assert RecipeTexts(running.gateway.library.storage.root).get(by_hash.removeprefix("set:")) == recipe
    again = await http.post("/v1/completions", json={"model": by_hash, "prompt": "x"})
    assert (again.headers["x-moergate-recipe"], again.json()["model"]) == (recipe, by_hash)


async def test_a_stock_engine_gets_single_experts_and_no_mixes(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home", FakeEngine(has_plugin=False)) as running:
        await register_examples(running, tmp_path)
        async with httpx.AsyncClient(base_url=running.url) as http:
            assert (await http.post("/v1/completions", json={"model": "sql", "prompt": "x"})).is_success
            refused = await http.post("/v1/completions", json={"model": "mix(sql*0.5,dates*0.5)", "prompt": "x"})
    assert refused.status_code == 400
    assert "without Moergate's plugin" in refused.json()["error"]["message"]


async def test_a_mix_goes_to_the_replica_that_can_execute_it(tmp_path: Path) -> None:
    stock, ours = FakeEngine(has_plugin=False), FakeEngine()
    async with running_gateway(tmp_path / "home", stock, ours) as running:
        await register_examples(running, tmp_path)
        async with httpx.AsyncClient(base_url=running.url) as http:
            for _ in range(4):
                answer = await http.post("/v1/completions", json={"model": "mix(sql*0.5,dates*0.5)", "prompt": "x"})
                assert answer.status_code == 200
    assert sum(b'"mix(' in request.body for request in ours.seen) == 4
    assert not any(b'"mix(' in request.body for request in stock.seen)
