"""``moergate score``: score the base and every expert on labelled prompts, for routers that learn from scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.client import DEFAULT_URL, AsJson, Key, Url, call, print_json

HELP = """Fill the table of scores: answer labelled prompts by the base and by every expert, and score the answers.

Tasks are DIR/TASK/SPLIT.jsonl or DIR/TASK.jsonl: one object per line with 'prompt', 'answer' and 'metric'. Answers are
stored, so an interrupted run resumes where it stopped, and a new expert costs only its own answers."""

ROWS_PER_REPORT = 200


def score(
    tasks: Annotated[Path, typer.Option(help="Folder or file of tasks.", exists=True)],
    split: Annotated[str, typer.Option(help="Name of the file in each task's folder.")] = "train",
    limit: Annotated[int, typer.Option(help="Maximum number of prompts of each task.", min=1)] = 32,
    losses: Annotated[
        bool, typer.Option("--losses", help="Also losses and entropies (prompt log-probabilities).")
    ] = False,
    expert: Annotated[
        list[str] | None, typer.Option(help="Score only this expert and the base; repeat for more.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 64,
    parallel: Annotated[int, typer.Option(help="Number of concurrent requests.", min=1, max=512)] = 16,
    skip_bad_rows: Annotated[bool, typer.Option(help="Skip rows that cannot be used.")] = False,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Fill the table of scores; HELP is the help text."""
    from server.cli.progress import phases, run_to_end
    from server.compare.client import GatewayClient
    from server.compare.run import score_all
    from server.compare.tasks import load_tasks
    from server.engine.result_cache import ResultCache, results_file

    async def work() -> None:
        with phases() as progress, ResultCache(results_file()) as cache:
            async with GatewayClient(url, api_key, parallel) as client:
                models = await client.models()
                found = load_tasks(tasks, split, models.tasks, limit=limit, skip_bad=skip_bad_rows)
                samples = [sample for task in found if task.is_scored for sample in task.samples]
                named = {name: models.experts[name] for name in expert or models.experts}
                rows = await score_all(
                    client,
                    cache,
                    models.base,
                    ["base", *named.values()],
                    samples,
                    max_tokens,
                    with_losses=losses,
                    progress=progress,
                )
                for start in range(0, len(rows), ROWS_PER_REPORT):
                    await client.report(rows[start : start + ROWS_PER_REPORT])

    run_to_end(work)
    summary = call("GET", url, "/admin/scores", key=api_key)
    if as_json:
        print_json(summary)
        return
    typer.echo(f"{summary['num_prompts']} prompts of {len(summary['tasks'])} tasks:")
    for model in summary["models"]:
        typer.echo(f"  {model['model']:40} {model['mean_score']}")
