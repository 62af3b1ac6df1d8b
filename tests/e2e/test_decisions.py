"""The decision log, feedback, drift and abstentions through a running gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.keys import new_key
from routers.library.samples import read_samples
from tests.e2e.conftest import EXAMPLES, register_examples, routed_to
from tests.support.processes import run_cli
from tests.support.servers import Running, running_gateway

SQL, STRANGE = EXAMPLES["sql"][0], "zzz qqq xxx"
NEVER = 2.0
"""A threshold that no prompt reaches."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The setting that says which database; none is SQLite in the home folder."""
    return {"database_url": request.getfixturevalue("postgres_url")} if request.param == "postgresql" else {}


@contextlib.asynccontextmanager
async def gateway(folder: Path, **settings: Any) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A gateway with the two experts, and a client without a key."""
    async with (
        running_gateway(folder / "home", **settings) as running,
        httpx.AsyncClient(base_url=running.url, timeout=30) as client,
    ):
        await register_examples(running, folder)
        yield running, client


async def ask(client: httpx.AsyncClient, text: str, model: str = "auto", **fields: Any) -> str:
    """Send a chat; its request id."""
    headers = {"x-request-id": fields.pop("request_id")} if "request_id" in fields else {}
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 2} | fields
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-request-id"]


async def kept(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    answer = await client.get("/admin/decisions", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def rate(client: httpx.AsyncClient, request_id: str, rating: Any = "up", **fields: Any) -> httpx.Response:
    return await client.post("/v1/feedback", json={"request_id": request_id, "rating": rating} | fields)


async def test_requests_are_listed_newest_first(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (running, client):
        routed = await ask(client, SQL)
        streamed = await ask(client, SQL, "dates", stream=True)
        abstained = await ask(client, STRANGE, f"auto:{NEVER}")
        mixed = await ask(client, SQL, "mix(sql*0.5,dates*0.5)")
        await client.post("/tokenize", json={"model": "base", "prompt": "x"})
        await client.post("/v1/chat/completions", json={"model": "absent", "messages": []})
        await running.gateway.decisions.flush()
        found = await kept(client)
        assert [each["request_id"] for each in found] == [mixed, abstained, streamed, routed]
        by_id = {each["request_id"]: each for each in found}
        assert by_id[routed]["kind"] == "policy"
        assert by_id[routed]["policy"] == "auto"
        assert by_id[routed]["recipe"].startswith("sql@")
        assert by_id[routed]["confidence"] > 0.5
        assert by_id[routed]["output_tokens"] == 2
        assert by_id[routed]["ttft_ms"] is None
        assert by_id[streamed]["kind"] == "expert"
        assert 0 < by_id[streamed]["ttft_ms"] <= by_id[streamed]["duration_ms"]
        assert (by_id[abstained]["recipe"], by_id[abstained]["abstained"]) == ("base", True)
        assert len(by_id[mixed]["experts"]) == 2
        assert [each["request_id"] for each in await kept(client, expert="sql")] == [mixed, routed]
        assert [each["request_id"] for each in await kept(client, abstained=True)] == [abstained]
        assert [each["request_id"] for each in await kept(client, request_id=routed)] == [routed]
        first = (await client.get("/admin/decisions", params={"limit": 3})).json()
        rest = (await client.get("/admin/decisions", params={"limit": 3, "before": first["next"]})).json()
        assert [each["request_id"] for each in rest["data"]] == [routed]
        assert rest["next"] is None


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0}, {"limit": 501}, {"limit": "x"}, {"before": 0}, {"before": 2**63}, {"policy": "a\0b"},
        {"policy": "x" * 64}, {"expert": "A B"}, {"expert": "sql@1"}, {"abstained": "perhaps"}, {"request_id": "ü"},
        {"key_id": "-"}, {"rated": "2"},
    ],
)  # fmt: skip
async def test_questions_that_cannot_be_answered(running: Running, query: dict[str, Any]) -> None:
    async with httpx.AsyncClient(base_url=running.url) as client:
        answer = await client.get("/admin/decisions", params=query)
        assert answer.status_code == 400, answer.text
        assert next(iter(query)) in answer.json()["error"]["message"]


async def everything_in(running: Running) -> str:
    """All rows of all tables of the gateway's database, as text."""

    async def work(connection: AsyncConnection) -> str:
        names = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
        rows = [(await connection.execute(sa.text(f'SELECT * FROM "{name}"'))).all() for name in names]  # noqa: S608
        return repr(rows)

    return await running.gateway.library._database.read(work)


async def test_no_prompt_reaches_the_database_by_default(tmp_path: Path, database: dict[str, str]) -> None:
    secret = "Mr Featherstonehaugh-Cholmondeley"
    async with gateway(tmp_path, **database) as (running, client):
        for model in ("auto", f"auto:{NEVER}", "base", "sql"):
            rated = await ask(client, f"{SQL} {secret}", model, request_id=f"of-{model.partition(':')[0]}")
            answer = await rate(client, rated, "down", comment=f"said {secret}", expert="dates")
            assert answer.json()["comment_kept"] is False
        await running.gateway.decisions.flush()
        stored = await everything_in(running)
        assert "of-base" in stored
        assert "Featherstonehaugh" not in stored
        assert {each["prompt"] for each in await kept(client)} == {None}
        assert all(each["feedback"]["comment"] is None for each in await kept(client))
        if not database:
            for file in (tmp_path / "home").glob("registry.sqlite3*"):
                assert b"Featherstonehaugh" not in file.read_bytes()
        advice = (await client.get("/admin/abstentions")).json()
        assert advice["data"] == []
        assert "decision_log" in advice["advice"]


@contextlib.contextmanager
def stopped(home: Path, url: str | None) -> Iterator[None]:
    """Take a gateway's database away: SQLite's lock is held, PostgreSQL lets nobody in."""
    if url is None:
        file = home / "registry.sqlite3"
        with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            yield
            holder.execute("ROLLBACK")
        return
    name = sa.engine.make_url(url).database
    asyncio.run(_as_superuser(url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
    ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608
    asyncio.run(_as_superuser(url, ended))
    yield
    asyncio.run(_as_superuser(url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))


async def _as_superuser(url: str, statement: str) -> None:
    elsewhere = sa.engine.make_url(url).set(database="postgres").render_as_string(hide_password=False)
    connection = await asyncpg.connect(elsewhere)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_requests_do_not_need_the_database(
    tmp_path: Path, database: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.journal.feedback.PATIENCE_S", 0.2)
    async with gateway(tmp_path, **database) as (running, client):
        await ask(client, SQL)
        await running.gateway.decisions.flush()
        away = stopped(tmp_path / "home", database.get("database_url"))
        await asyncio.to_thread(away.__enter__)
        try:
            ids = [await ask(client, SQL, request_id=f"meanwhile-{number}") for number in range(20)]
            refused = await rate(client, ids[0])
            assert refused.status_code == 503, refused.text
        finally:
            await asyncio.to_thread(away.__exit__, None, None, None)
        await running.gateway.decisions.flush()
        found = {each["request_id"] for each in await kept(client)}
        assert set(ids) <= found
        value = running.gateway.metrics.registry.get_sample_value
        assert value("moergate_decisions_dropped_total") == 0


async def test_what_waits_is_written_when_the_gateway_ends(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (_, client):
        last = await ask(client, SQL)
    with contextlib.closing(sqlite3.connect(tmp_path / "home" / "registry.sqlite3")) as database:
        assert database.execute("SELECT request_id FROM decisions").fetchall() == [(last,)]


# -- feedback -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def keyed(running: Running, **keys: dict[str, Any]) -> AsyncIterator[dict[str, httpx.AsyncClient]]:
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for name, options in keys.items():
            record, secret = new_key(name, **options)
            await running.gateway.library.keys.add(record)
            headers = {"authorization": f"Bearer {secret}"}
            client = httpx.AsyncClient(base_url=running.url, headers=headers, timeout=30)
            clients[name] = await stack.enter_async_context(client)
        running.gateway.authenticator.forget()
        yield clients


async def test_feedback_counts_once_and_the_last_one_stays(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (running, client):
        request_id = await ask(client, SQL)
        answer = await rate(client, request_id)
        assert answer.json() == {
            "object": "feedback", "request_id": request_id, "rating": 1.0, "expert": None, "comment_kept": False,
        }  # fmt: skip
        for rating in (0.25, -1, "down"):
            assert (await rate(client, request_id, rating, expert="dates")).status_code == 200
        (found,) = await kept(client, rated=True)
        assert (found["request_id"], found["feedback"]["rating"]) == (request_id, -1.0)
        assert found["feedback"]["expert"] == "dates"
        labels = {"policy": "auto", "expert": "sql", "rating": "up"}
        assert running.gateway.metrics.registry.get_sample_value("moergate_feedback_total", labels) == 1
        unrated = await ask(client, SQL, "base")
        await running.gateway.decisions.flush()
        assert [each["request_id"] for each in await kept(client, rated=False)] == [unrated]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"request_id": None}, "request_id"), ({"request_id": "a b"}, "request_id"), ({"request_id": 7}, "request_id"),
        ({"request_id": "x\n"}, "request_id"), ({"rating": "great"}, "rating"), ({"rating": 1.5}, "rating"),
        ({"rating": True}, "rating"), ({"rating": "0.5"}, "rating"), ({"rating": None}, "rating"),
        ({"comment": "x" * 2001}, "comment"), ({"comment": 1}, "comment"), ({"expert": ""}, "expert"),
        ({"expert": "auto"}, "expert"), ({"extra": 1}, "extra"),
    ],
)  # fmt: skip
async def test_feedback_that_cannot_be_taken(running: Running, change: dict[str, Any], param: str) -> None:
    async with httpx.AsyncClient(base_url=running.url) as client:
        body = {"request_id": "r", "rating": "up"} | change
        answer = await client.post("/v1/feedback", json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert (await client.post("/v1/feedback", content=b"[" * 10)).status_code == 400
        assert (await client.post("/v1/feedback", content=b" " * (65 << 10))).status_code == 413


async def test_a_key_learns_nothing_by_feedback(tmp_path: Path, database: dict[str, str]) -> None:
    everything = {"scopes": {"infer", "admin"}}
    async with (
        gateway(tmp_path, **database) as (running, _),
        keyed(running, mine=everything, other={"experts": ["sql"]}) as clients,
    ):
        mine, other = clients["mine"], clients["other"]
        theirs = await ask(mine, SQL)
        waiting = await rate(other, theirs)  # it may still be in the queue
        await running.gateway.decisions.flush()
        for hidden, unknown in ((await rate(other, theirs), await rate(other, "0" * 32)), (waiting, waiting)):
            assert hidden.status_code == unknown.status_code == 404
            assert hidden.json() == unknown.json()
        assert await kept(mine, rated=True) == []
        own = await ask(other, SQL, request_id=theirs)  # the same id, by another key
        assert (await rate(other, own, "down")).status_code == 200
        (rated,) = await kept(mine, rated=True)
        assert rated["key_id"] != (await kept(mine, rated=False))[0]["key_id"]
        hidden, unknown = [await rate(other, own, expert=name) for name in ("dates", "setad")]
        assert hidden.status_code == unknown.status_code == 404
        assert hidden.text.replace("dates", "?") == unknown.text.replace("setad", "?")
        assert (await rate(other, own, expert="sql")).json()["expert"] == "sql"
        assert (await rate(other, own, expert="base")).json()["expert"] == "base"


async def test_feedback_may_reach_another_gateway(tmp_path: Path, database: dict[str, str]) -> None:
    async with (
        gateway(tmp_path, **database) as (_, client),
        running_gateway(tmp_path / "home", **database) as second,
        httpx.AsyncClient(base_url=second.url, timeout=30) as other,
    ):
        await routed_to(other, SQL, (await kept_recipe(other)))
        for _ in range(3):
            request_id = await ask(client, SQL)
            assert (await rate(other, request_id)).status_code == 200
        assert {each["feedback"]["rating"] for each in await kept(client)} == {1.0}


async def kept_recipe(client: httpx.AsyncClient) -> str:
    """The id of the expert sql."""
    listed = (await client.get("/admin/adapters")).json()["data"]
    return next(record["id"] for record in listed if record["name"] == "sql")


async def test_without_a_log_feedback_says_why(tmp_path: Path) -> None:
    async with gateway(tmp_path, decision_log="off") as (running, client):
        answer = await rate(client, await ask(client, SQL))
        assert answer.status_code == 404
        assert "decision_log" in answer.json()["error"]["message"]
        await running.gateway.decisions.flush()
        assert await kept(client) == []


async def test_feedback_becomes_samples(tmp_path: Path) -> None:
    async with gateway(tmp_path, decision_log="prompts") as (running, client):
        for text, rating, expert in (
            (SQL, "up", None), (STRANGE, "down", "dates"), (f"{SQL} bad", "down", None), (f"{SQL}?", "up", None),
            (f"{SQL}?", "down", "base"), ("hello", "up", "base"),
        ):  # fmt: skip
            await rate(client, await ask(client, text), rating, expert=expert, comment="why")
        shown = await kept(client)
        assert shown[0]["feedback"]["comment"] == "why"
        url = ("--url", running.url)
        out = tmp_path / "samples.jsonl"
        done = await asyncio.to_thread(run_cli, "decisions", "export", str(out), "--feedback", *url)
        assert done.returncode == 0, done.stderr
        assert "2 of 6" in done.stderr
        samples, bad = read_samples(out)
        assert not bad
        assert {(each.prompt, each.task) for each in samples} == {(SQL, "sql"), (STRANGE, "dates")}
        library = await asyncio.to_thread(run_cli, "decisions", "export", "--feedback", "--format", "library", *url)
        assert {each["name"]: each["examples"] for each in json.loads(library.stdout)} == {
            "dates": [STRANGE], "sql": [SQL],
        }  # fmt: skip
        listed = await asyncio.to_thread(run_cli, "decisions", "list", "--rated", *url)
        assert listed.returncode == 0, listed.stderr
        as_json = await asyncio.to_thread(run_cli, "decisions", "list", "--limit", "2", "--json", *url)
        assert len(json.loads(as_json.stdout)) == 2
        bare = await asyncio.to_thread(run_cli, "decisions", env={"MOERGATE_URL": running.url})
        assert bare.returncode == 0, bare.stderr
        wrong = await asyncio.to_thread(run_cli, "decisions", "export", "--feedback", "--format", "xml", *url)
        assert wrong.returncode == 2


# -- drift and abstentions ----------------------------------------------------------------------------------------


async def test_drift_is_seen(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (running, client):
        assert (await client.get("/admin/policies/absent/drift")).status_code == 404
        await asyncio.gather(*(ask(client, SQL) for _ in range(120)))
        found = (await client.get("/admin/policies/auto/drift")).json()
        assert found["num_decisions"] == 120
        assert found["verdict"] == "strong"
        first = found["experts"][0]
        assert (first["expert"], first["share"]["traffic"]) == ("sql", 1.0)
        metrics = (await client.get("/metrics")).text
        assert f'moergate_policy_drift{{policy="auto"}} {found["drift"]}'[:40] in metrics
        assert 'moergate_expert_share{expert="dates",of="traffic",policy="auto"} 0.0' in metrics
        shown = await asyncio.to_thread(run_cli, "policies", "drift", "auto", "--url", running.url)
        assert "strong" in shown.stdout


async def test_what_nobody_covers_is_grouped(tmp_path: Path) -> None:
    poems = [f"write a poem about the {word} in winter" for word in ("sea", "moon", "river", "forest", "mountain")]
    taxes = [f"tax return deduction rule {word}" for word in ("housing", "travel", "tools", "meals", "training")]
    async with gateway(tmp_path, decision_log="prompts") as (running, client):
        for text in [*poems, *taxes, *taxes]:
            await ask(client, text, f"auto:{NEVER}")
        await ask(client, SQL)
        await running.gateway.decisions.flush()
        found = (await client.get("/admin/abstentions", params={"policy": "auto"})).json()
        assert found["num_abstentions"] == 15
        assert [group["size"] for group in found["data"]] == [10, 5]
        assert set(found["data"][0]["prompts"]) <= set(taxes)
        assert set(found["data"][1]["prompts"]) == set(poems)
        assert found["data"][0]["nearest"]["expert"].partition("@")[0] in EXAMPLES
        assert "expert" in found["advice"]
        assert len((await client.get("/admin/abstentions", params={"k": 3})).json()["data"]) == 3
        assert (await client.get("/admin/abstentions", params={"policy": "other"})).json()["data"] == []
        assert (await client.get("/admin/abstentions", params={"k": 0})).status_code == 400
        shown = await asyncio.to_thread(run_cli, "abstentions", "--url", running.url)
        assert "tax return" in shown.stdout
