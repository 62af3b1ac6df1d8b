"""The real thing: the official client, the gateway as a process, vLLM, SmolLM2 and the demo library."""

import concurrent.futures
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.engine.conftest import LIBRARY
from tests.support.processes import Serving, alive, descendants, fetch
from tests.support.waiting import eventually_sync

PARIS: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def held_out() -> dict[str, list[dict[str, str]]]:
    rows: dict[str, list[dict[str, str]]] = {}
    for line in (LIBRARY / "held_out.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault(row["expert"], []).append(row)
    return rows


@pytest.fixture
def client(served: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=120) as opened:
        yield opened


def test_each_expert_answers_its_own_prompts(client: openai.OpenAI) -> None:
    rows = [row for group in held_out().values() for row in group[:6]]

    def ask(row: dict[str, str]) -> tuple[str, bool]:
        raw = client.chat.completions.with_raw_response.create(
            model="auto", messages=[{"role": "user", "content": row["prompt"]}], temperature=0, max_tokens=64
        )
        expert = raw.headers["x-moergate-recipe"].partition("@")[0]
        content = raw.parse().choices[0].message.content or ""
        return expert, content.strip() == row["answer"].strip()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, rows))
    routed = [expert == row["expert"] for (expert, _), row in zip(answers, rows, strict=True)]
    right = [correct for _, correct in answers]
    assert sum(routed) / len(rows) >= 0.95
    assert sum(right) / len(rows) >= 0.85


def test_a_base_request_keeps_its_answer_among_experts(client: openai.OpenAI, fresh_seed: int) -> None:
    rows = [group[0] for group in held_out().values()]

    def base() -> str:
        answer = client.chat.completions.create(model="base", messages=PARIS, temperature=0, max_tokens=16)
        return answer.choices[0].message.content or ""

    def expert(row: dict[str, str]) -> str:
        messages: list[Any] = [{"role": "user", "content": row["prompt"]}]
        answer = client.chat.completions.create(
            model=row["expert"], messages=messages, temperature=0, max_tokens=32, seed=fresh_seed % 1000
        )
        return answer.choices[0].message.content or ""

    alone = base()
    assert "Paris" in alone
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        experts = [pool.submit(expert, row) for row in rows]
        together = [pool.submit(base) for _ in range(3)]
        assert {future.result() for future in together} == {alone}
        assert all(future.result() for future in experts)


def test_base_singles_a_mix_and_a_gate_in_flight_at_once(client: openai.OpenAI) -> None:
    """More experts than slots: some wait, all answer, and each as it does alone.

    The base is asked what it knows: where it does not, its words hang on bfloat16's last bit, which depends on how many
    rows are computed together, with or without experts. That it stays itself to the last bits the parity suite tests.
    """
    rows = held_out()
    names = list(rows)
    asked = ["base", *names, f"mix({names[0]}*0.7,{names[1]}*0.3)", f"gate(arrow,k=2;{','.join(names[:4])})"]

    def ask(model: str) -> str:
        raw = client.chat.completions.with_raw_response.create(
            model=model,
            messages=PARIS if model == "base" else [{"role": "user", "content": rows[names[0]][0]["prompt"]}],
            temperature=0,
            max_tokens=8 if model == "base" else 24,
        )
        answer = raw.parse()
        assert answer.model == model
        assert all(name in raw.headers["x-moergate-recipe"] for name in names if name in model)
        return answer.choices[0].message.content or ""

    alone = {model: ask(model) for model in (asked[0], asked[1], asked[-2], asked[-1])}
    assert alone[names[0]].strip() == rows[names[0]][0]["answer"].strip()
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        together = dict(zip(asked, pool.map(ask, asked), strict=True))
    assert {model: together[model] for model in alone} == alone


def test_a_recipe_that_needs_too_many_slots_says_so_and_harms_nobody(client: openai.OpenAI) -> None:
    names = list(held_out())[:7]
    with pytest.raises(openai.BadRequestError, match="needs 7 experts at once, but the engine has only 6 slots"):
        client.completions.create(model=f"mix({','.join(f'{name}*0.1' for name in names)})", prompt="x", max_tokens=2)
    assert client.completions.create(model="base", prompt="x", max_tokens=2).choices


@pytest.mark.parametrize(
    "model",
    ["base", "date_iso", "mix(date_iso*0.7,time_24h*0.3)", "gate(arrow,k=2;date_iso,sql_shop,time_24h,csv_json)"],
    ids=["base", "single", "mix", "gate"],
)
def test_streams_logprobs_choices_and_structured_output_work_for_every_kind(model: str, client: openai.OpenAI) -> None:
    for _ in range(2):  # the first one fills the prefix cache, and what an expert says of Paris hangs on the last bit
        whole = client.chat.completions.create(model=model, messages=PARIS, temperature=0, max_tokens=16)
    stream = client.chat.completions.create(
        model=model, messages=PARIS, stream=True, temperature=0, max_tokens=16, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert {chunk.model for chunk in chunks} == {model}

    answer = client.chat.completions.create(
        model=model, messages=PARIS, n=3, logprobs=True, top_logprobs=3, max_tokens=4, temperature=1.0, seed=1
    )
    assert len(answer.choices) == 3
    for choice in answer.choices:
        assert choice.logprobs and choice.logprobs.content
        assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in choice.logprobs.content)

    structured = client.chat.completions.create(
        model=model,
        messages=PARIS,
        temperature=0,
        max_tokens=40,
        extra_body={"structured_outputs": {"regex": r'\{"city": "(Oslo|Paris)"\}'}},
    )
    assert json.loads(structured.choices[0].message.content or "")["city"] in ("Oslo", "Paris")


def test_completions_responses_messages_and_tokenising(client: openai.OpenAI, served: Serving) -> None:
    completion = client.completions.create(model="auto", prompt="The capital of France is", max_tokens=4, temperature=0)
    assert completion.model == "auto"
    ids = fetch(served.url + "/tokenize", {"model": "auto", "prompt": "The capital of France is"})[1]["tokens"]
    by_ids = client.completions.create(model="base", prompt=ids, max_tokens=4, temperature=0)
    by_text = client.completions.create(model="base", prompt="The capital of France is", max_tokens=4, temperature=0)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert fetch(served.url + "/detokenize", {"model": "base", "tokens": ids})[1]["prompt"].endswith("France is")
    response = client.responses.create(model="auto", input="What is the capital of France?", max_output_tokens=16)
    assert response.model == "auto"
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as other:
        message = other.messages.create(model="auto", max_tokens=16, messages=PARIS)
    assert message.model == "auto"
    assert message.content


def test_one_request_id_goes_through_gateway_engine_and_log(client: openai.OpenAI, served: Serving) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=PARIS, max_tokens=2, extra_headers={"x-request-id": "trace-me-4711"}
    )
    assert raw.headers["x-request-id"] == "trace-me-4711"
    assert "trace-me-4711" in raw.parse().id
    eventually_sync(lambda: "trace-me-4711" in served.log.read_text())  # it is written a few times a second


def test_errors_of_gateway_and_engine_are_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"GET /v1/models|Did you mean"):
        client.chat.completions.create(model="no-such-model", messages=PARIS)
    with pytest.raises(openai.BadRequestError, match=r"1024|context|length|tokens"):
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "word " * 3000}])
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="auto", messages="not a list")  # type: ignore[arg-type,call-overload]


def test_a_new_expert_is_served_without_a_restart(served: Serving, client: openai.OpenAI) -> None:
    rows = held_out()
    name, group = sorted(rows.items())[0]
    folder = LIBRARY / "adapters" / name
    body = {"name": "newcomer", "source": {"path": str(folder)}, "examples": []}
    status, record = fetch(served.url + "/admin/adapters", body)
    assert status == 201, record
    messages: list[Any] = [{"role": "user", "content": group[0]["prompt"]}]
    answers = [
        client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=64)
        for model in (name, "newcomer", record["id"])
    ]
    assert len({answer.choices[0].message.content for answer in answers}) == 1


def test_engine_metrics_reach_ours(served: Serving, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="base", messages=PARIS, max_tokens=4)
    import urllib.request

    with urllib.request.urlopen(served.url + "/metrics") as response:
        text = response.read().decode()
    assert 'moergate_engine_up{replica="local"} 1.0' in text
    assert 'expert="base"' in text


def test_an_engine_killed_in_a_stream_is_reported_and_started_again(served: Serving, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="base", messages=[{"role": "user", "content": "Count to a thousand."}], stream=True, max_tokens=900
    )
    chunks = iter(stream)
    next(chunks)
    family = descendants(served.process.pid)
    engine = min(family)
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(openai.APIError) as error:
        for _ in chunks:
            pass
    assert getattr(error.value, "code", None) == "engine_lost"
    assert served.get("/livez")[0] == 200
    eventually_sync(lambda: served.get("/readyz")[0] == 503, within=60)
    status, refused = fetch(served.url + "/v1/completions", {"model": "base", "prompt": "x"})
    assert (status, refused["error"]["code"]) == (503, "unavailable")
    served.wait_ready()
    answer = client.chat.completions.create(model="base", messages=PARIS, temperature=0, max_tokens=16)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert not any(alive(pid) for pid in family)


def test_a_killed_gateway_takes_its_engine_along_and_loses_nothing(served: Serving) -> None:
    """The last test of this file, for it ends the gateway."""
    before = fetch(served.url + "/admin/adapters")[1]["data"]
    family = descendants(served.process.pid)
    assert family
    served.process.kill()
    served.process.wait()
    eventually_sync(lambda: not [pid for pid in family if alive(pid)], within=60)
    home = Path(served.log.parent / served.log.stem)
    import asyncio

    from adapters_registry.library import Library

    async def records() -> set[str]:
        library = await Library.open(home)
        try:
            assert not await library.find_damaged()
            return {record.expert_id for record in await library.list()}
        finally:
            await library.close()

    assert asyncio.run(records()) == {record["id"] for record in before}
