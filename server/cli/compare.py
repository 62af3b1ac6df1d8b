"""``moergate compare``: run every policy on the user's tasks, and report which differences are significant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from server.cli.client import DEFAULT_URL, Key, Url, call, print_table

if TYPE_CHECKING:
    from server.compare.stats import Figures

HELP = """Compare policies on your own tasks, through a running gateway and its engine.

Tasks are DIR/TASK/SPLIT.jsonl, DIR/TASK.jsonl or a file: one object per line with 'prompt', 'answer' and 'metric'. A
task belongs to the expert of the same name, or whose card names the task. Other tasks are held out. Tasks with the
metric 'none' are out of scope: a good policy abstains there. The base and the oracle (each task by its own expert) are
always included.

Writes results.jsonl, leaderboard.md, leaderboard.json and compare.html into OUT. Answers are stored by recipe and
prompt, so each is generated once, and a second run generates only new ones."""


SHOWN = ("policy", "score", "normalised", "p_value", "routed", "abstained_out", "auroc", "held_out")
"""Columns of the leaderboard that fit into a terminal; the files have all columns."""


def compare(
    tasks: Annotated[list[Path], typer.Option(help="Folder or file of tasks; repeat for more.", exists=True)],
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="A policy, expert or recipe; repeat for more. Default: all policies."),
    ] = None,
    split: Annotated[str, typer.Option(help="Name of the file in each task's folder.")] = "val",
    held_out: Annotated[
        Path | None, typer.Option(help="Another folder of tasks, whose file is always 'val'.", exists=True)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Maximum number of prompts of each task.", min=1)] = None,
    leave_own_out: Annotated[
        bool, typer.Option("--leave-own-out", help="Hide each prompt's own expert from the policies.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("comparison"),
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 64,
    parallel: Annotated[int, typer.Option(help="Number of concurrent requests.", min=1, max=512)] = 16,
    base_price: Annotated[
        tuple[float, float], typer.Option(help="Price of a million tokens of the base: input and output.")
    ] = (1.0, 1.0),
    expert_price: Annotated[
        tuple[float, float], typer.Option(help="Price of a million tokens with experts: input and output.")
    ] = (1.0, 1.0),
    publish: Annotated[
        bool, typer.Option("--publish", help="Show the leaderboard in the gateway's console; needs an admin key.")
    ] = False,
    skip_bad_rows: Annotated[bool, typer.Option(help="Skip rows that cannot be used.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
) -> None:
    """Compare policies; HELP is the help text."""
    from server.cli.progress import phases, run_to_end
    from server.compare.client import GatewayClient
    from server.compare.report import About, write_report
    from server.compare.run import Compared, Plan, Prices
    from server.compare.run import compare as run
    from server.compare.stats import compare_outcomes
    from server.compare.tasks import load_tasks
    from server.engine.result_cache import ResultCache, results_file

    done: list[tuple[Plan, Compared]] = []

    async def work() -> None:
        with phases() as progress, ResultCache(results_file()) as cache:
            async with GatewayClient(url, api_key, parallel) as client:
                models = await client.models()
                folders = [(folder, split) for folder in tasks] + ([(held_out, "val")] if held_out else [])
                found = [
                    task
                    for folder, name in folders
                    for task in load_tasks(folder, name, models.tasks, limit=limit, skip_bad=skip_bad_rows)
                ]
                chosen = tuple(dict.fromkeys(policies or models.policies))
                prices = Prices(base_price, expert_price)
                plan = Plan(chosen, tuple(found), models.base, max_tokens, leave_own_out, prices)
                done.append((plan, await run(client, cache, plan, progress)))

    run_to_end(work)
    ((plan, compared),) = done
    comparison = compare_outcomes(compared.outcomes)
    about = About(
        folders=tuple(map(str, tasks)) + ((str(held_out),) if held_out else ()),
        split=split,
        base=plan.base,
        num_prompts=sum(len(task.samples) for task in plan.tasks),
        num_skipped=sum(task.num_skipped for task in plan.tasks),
        leave_own_out=leave_own_out,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        left_out=compared.left_out,
    )
    write_report(out, comparison, compared.outcomes, plan.tasks, about)
    _show(comparison.figures, out)
    for policy, reason in compared.left_out.items():
        typer.echo(f"Not compared: {policy} ({reason})", err=True)
    if publish:
        call("PUT", url, "/admin/leaderboard", key=api_key, body=(out / "leaderboard.json").read_bytes())
        typer.echo(f"Published: {url.rstrip('/')}/console#leaderboard shows it.")


def _show(figures: Sequence[Figures], out: Path) -> None:
    from server.compare.report import COLUMNS, cell, ranked

    columns = [column for column in COLUMNS if column.key in SHOWN]
    table = Table(*(column.title for column in columns), box=None)
    for each in ranked(figures):
        table.add_row(*(cell(each, column) for column in columns))
    print_table(table)
    typer.echo(
        f"{out / 'compare.html'} has the pictures, {out / 'leaderboard.md'} the table, and results.jsonl the rows."
    )
