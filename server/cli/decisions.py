"""``moergate decisions``: decisions for requests, and callers' feedback on the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import orjson
import typer
import typer.core
from rich.table import Table

from adapters_registry.names import split_expert_id
from server.cli.client import DEFAULT_URL, AsJson, ClientError, Key, Url, call, print_json, print_table

app = typer.Typer(no_args_is_help=False)

PAGE = 500
SAMPLES, LIBRARY = "samples", "library"


@app.callback(invoke_without_command=True)
def decisions(context: typer.Context) -> None:
    """List the last decisions; the default sub-command is 'list'."""
    if context.invoked_subcommand is None and isinstance(context.command, typer.core.TyperGroup):
        context.command.commands["list"].main(
            [], standalone_mode=False
        )  # through the command, so that it reads the environment too


@app.command("list")
def list_decisions(
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of decisions.")] = 20,
    policy: Annotated[str | None, typer.Option(help="Only of this policy.")] = None,
    expert: Annotated[str | None, typer.Option(help="Only decisions with this expert: name or name@version.")] = None,
    abstained: Annotated[
        bool | None, typer.Option("--abstained/--answered", help="Only decisions without an expert, or with one.")
    ] = None,
    request_id: Annotated[str | None, typer.Option(help="Only decisions of this request.")] = None,
    rated: Annotated[
        bool | None, typer.Option("--rated/--unrated", help="Only decisions with feedback, or without.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List decisions, newest first."""
    wanted = {"policy": policy, "expert": expert, "abstained": abstained, "request_id": request_id, "rated": rated}
    found = []
    for decision in _all(url, api_key, wanted, min(limit, PAGE)):
        found.append(decision)
        if len(found) == limit:
            break
    if as_json:
        print_json(found)
        return
    table = Table("time", "request", "policy", "recipe", "confidence", "status", "ms", "tokens", "rating", box=None)
    for each in found:
        confidence = "" if each["confidence"] is None else f"{each['confidence']:.2f}"
        rating = f"{each['feedback']['rating']:+g}" if each["feedback"] else ""
        recipe = f"{each['recipe']} (abstained)" if each["abstained"] else each["recipe"]
        tokens = f"{each['input_tokens']}+{each['output_tokens']}"
        time = each["at"][:19].replace("T", " ")
        row = (time, each["request_id"], each["policy"] or each["kind"], recipe, confidence, each["status"])
        table.add_row(*map(str, row), f"{each['duration_ms']:.0f}", tokens, rating)
    print_table(table)
    if not found:
        typer.echo("No decision matches.")


@app.command()
def export(
    out: Annotated[Path | None, typer.Argument(help="The file to write. Default: standard output.")] = None,
    feedback: Annotated[
        bool, typer.Option("--feedback", help="Export only what feedback teaches: prompts with the right expert.")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", help="With --feedback: samples (JSON Lines) or library (for moergate tune).")
    ] = SAMPLES,
    policy: Annotated[str | None, typer.Option(help="Only of this policy.")] = None,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
) -> None:
    """Write decisions as JSON Lines, or what feedback teaches as samples to learn from.

    A rating above 0 says that the answering expert suits the prompt; 'expert' in the feedback names a better one.
    Samples have 'prompt', 'task' (the expert), an empty 'answer' and the metric 'none', because the right answer is
    unknown. The export needs prompts in the log (setting decision_log = prompts).
    """
    if form not in (SAMPLES, LIBRARY):
        raise ClientError(f"There is no format {form!r}: choose {SAMPLES} or {LIBRARY}.", 2)
    found = _all(url, api_key, {"policy": policy, "rated": True if feedback else None}, PAGE)
    if not feedback:
        _write(out, (orjson.dumps(each) for each in found))
        return
    rated = list(found)
    learnt = list(taught(rated))
    if rated and not learnt:
        raise ClientError(
            f"{len(rated)} requests have feedback, but none can be exported: the prompts are not kept (setting "
            "decision_log = prompts), or no rating says which expert suits a prompt.",
            1,
        )
    if form == LIBRARY:
        _write(out, [orjson.dumps(as_library(learnt), option=orjson.OPT_INDENT_2)])
    else:
        _write(out, map(orjson.dumps, learnt))
    typer.echo(f"{len(learnt)} of {len(rated)} rated requests say which expert suits the prompt.", err=True)


def taught(decisions: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield samples from decisions with feedback, newest first; only the newest feedback on a prompt counts."""
    seen = set()
    for each in decisions:
        prompt, opinion = each["prompt"], each["feedback"]
        if not prompt or not opinion or prompt in seen:
            continue
        seen.add(prompt)
        expert = opinion["expert"]
        if expert is None and opinion["rating"] > 0 and len(each["experts"]) == 1:
            expert = split_expert_id(each["experts"][0])[0]
        if expert is None or expert == "base":
            continue
        yield {
            "prompt": prompt,
            "answer": "",
            "task": expert,
            "metric": "none",
            "rating": opinion["rating"],
            "request_id": each["request_id"],
        }


def as_library(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the prompts as examples of their experts, in the form of a library.json."""
    examples: dict[str, list[str]] = {}
    for sample in samples:
        examples.setdefault(sample["task"], []).append(sample["prompt"])
    return [{"name": name, "examples": prompts} for name, prompts in sorted(examples.items())]


def _all(url: str, key: str | None, wanted: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """Yield decisions, page by page, newest first."""
    query: dict[str, Any] = {"limit": limit} | {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in wanted.items()
        if value is not None
    }
    while True:
        page = call("GET", url, f"/admin/decisions?{urlencode(query)}", key=key)
        yield from page["data"]
        if page["next"] is None:
            return
        query["before"] = page["next"]


def _write(out: Path | None, lines: Any) -> None:
    if out is None:
        for line in lines:
            typer.echo(line.decode())
        return
    try:
        with out.open("wb") as file:
            for line in lines:
                file.write(line + b"\n")
    except OSError as error:
        raise ClientError(f"{out} cannot be written: {error.strerror}.", 1) from None
