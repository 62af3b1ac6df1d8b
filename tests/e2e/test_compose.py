"""Composed adapters: merged, registered with where they came from, and used like any other."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from adapters_registry.merging.arrow_prototypes import read_factors
from tests.e2e.conftest import register_examples
from tests.support.adapters import make_adapter, manifest
from tests.support.processes import run_cli
from tests.support.servers import Running, running_gateway


@pytest.fixture
def gateway(running: Running) -> Running:
    return running


async def test_a_composed_adapter_is_the_weighted_sum_and_says_so(gateway: Running) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        order = {"name": "both", "recipe": "mix(sql*0.25,dates*0.5)", "examples": ["a prompt for both"]}
        response = await http.post("/admin/adapters/compose", json=order)
        assert response.status_code == 201, response.text
        record = response.json()
        answer = await http.post("/v1/completions", json={"model": "both", "prompt": "x"})
    assert answer.status_code == 200
    assert json.loads(gateway.engine.seen[-1].body)["model"] == record["id"]
    made = record["card"]["composed_from"]
    assert (made["method"], made["density"], made["seed"]) == ("exact", None, None)
    assert made["recipe"].startswith("mix(dates@")
    library = gateway.gateway.library
    parts = {}
    for name in ("sql", "dates", "both"):
        folder = library.folder_of(await library.get(name))
        alpha = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]
        factors = read_factors(folder / "adapter_model.safetensors")
        parts[name] = {module: alpha / len(a) * b @ a for module, (a, b) in factors.items()}
    for module, product in parts["both"].items():
        expected = 0.25 * parts["sql"][module] + 0.5 * parts["dates"][module]
        np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-5)


async def test_a_version_that_is_not_active_can_be_merged_by_its_id(gateway: Running, tmp_path: Path) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        order = manifest("sql", make_adapter(tmp_path / "next", seed=9), "another prompt")
        order |= {"publish": {"to": "ready"}}
        ready = (await http.post("/admin/adapters", json=order)).json()["id"]
        merged = await http.post(
            "/admin/adapters/compose", json={"name": "both", "recipe": f"mix({ready}*0.5,dates*0.5)"}
        )
        assert merged.status_code == 201, merged.text
        assert (await http.get(f"/v1/models/{ready}")).json()["id"] == ready
        assert (await http.get("/v1/models/auto:0.3")).json()["id"] == "auto"


async def test_a_merge_is_for_the_tenant_of_its_parts(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home") as gateway, httpx.AsyncClient(base_url=gateway.url) as http:
        await register_examples(gateway, tmp_path, sql="bank", dates="insurer")

        async def compose(recipe: str, **card: str) -> httpx.Response:
            order = {"name": "made", "recipe": recipe, "card": card}
            return await http.post("/admin/adapters/compose", json=order)

        refused = await compose("mix(sql*0.5,dates*0.5)")
        assert refused.status_code == 400
        assert "bank, insurer" in refused.json()["error"]["message"]
        assert (await compose("mix(sql*0.5)")).json()["card"]["tenant"] == "bank"
        assert (await compose("mix(sql*0.5,dates*0.5)", tenant="")).json()["card"]["tenant"] == ""


@pytest.mark.parametrize(
    ("order", "status", "hint"),
    [
        ({"name": "x", "recipe": "mix(sql*0.5,nobody*0.5)"}, 404, "'nobody' does not exist"),
        ({"name": "x", "recipe": "mix(sql*0.5"}, 400, "expected"),
        ({"name": "x", "recipe": "gate(arrow;sql,dates)"}, 400, "Only a mix"),
        ({"name": "x", "recipe": "base"}, 400, "Only a mix"),
        ({"name": "auto", "recipe": "mix(sql*0.5,dates*0.5)"}, 409, "name of a policy"),
        ({"name": "../x", "recipe": "mix(sql*0.5,dates*0.5)"}, 400, "name"),
        ({"name": "x", "recipe": "mix(sql*0.5,dates*0.5)", "method": "wudi"}, 400, "method"),
        ({"name": "x", "recipe": "mix(sql*0.5,dates*0.5)", "method": "svd", "rank": 0}, 400, "below 1"),
        ({"name": "x", "recipe": "mix(sql*0.5,dates*0.5)", "method": "ties", "density": 2}, 400, "at most 1"),
        ({"name": "x"}, 400, "recipe"),
    ],
)
async def test_bad_orders_are_refused_with_the_reason(
    order: dict[str, object], status: int, hint: str, gateway: Running
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        response = await http.post("/admin/adapters/compose", json=order)
        names = {entry["name"] for entry in (await http.get("/admin/adapters")).json()["data"]}
    assert response.status_code == status, response.text
    assert hint in response.json()["error"]["message"]
    assert names == {"sql", "dates"}


async def test_the_command_composes(gateway: Running, tmp_path: Path) -> None:
    import asyncio

    arguments = ("compose", "small", "--recipe", "mix(sql*0.5,dates*0.5)", "--method", "svd", "--rank", "2")
    done = await asyncio.to_thread(run_cli, *arguments, "--url", gateway.url)
    assert done.returncode == 0, done.stderr
    assert "small@" in done.stdout
    assert "svd of mix(dates@" in done.stdout
    wrong = await asyncio.to_thread(run_cli, "compose", "x", "--recipe", "mix(sql*1)", "--method", "wudi")
    assert wrong.returncode == 2
    assert "choose one of exact, svd" in wrong.stderr
