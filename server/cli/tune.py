"""``moergate tune``: fine-tune the sentence encoder on the library's examples, into a folder for ``--embedder``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import orjson
import typer

from server.cli.client import DEFAULT_URL, AsJson, ClientError, Key, Url, call, print_json

if TYPE_CHECKING:
    from routers.embedders.tune import Measured, TuneReport

HELP = """Fine-tune the sentence encoder on the experts' example prompts, and write it to the new folder OUT.

  moergate tune encoder                                            (the experts of the running gateway)
  moergate tune encoder --library library.json --share 1.0
  moergate fit tuned --router lora_retriever --embedder $PWD/encoder

Training moves prompts of one expert together and prompts of different experts apart. It needs sentence-transformers
and torch on this machine; the gateway opens the folder without them if the model is a BERT. The gateway must be able
to read the folder."""


def tune(
    out: Annotated[Path, typer.Argument(help="The new folder.")],
    library: Annotated[
        Path | None, typer.Option(help="A library.json with examples, instead of the gateway's experts.")
    ] = None,
    model: Annotated[str, typer.Option(help="The encoder to begin with: a folder or a name.")] = "all-MiniLM-L6-v2",
    share: Annotated[float, typer.Option(help="Share of the experts to train on, chosen by the seed.")] = 0.4,
    steps: Annotated[int, typer.Option(help="Batches to train on.", min=1)] = 200,
    pairs: Annotated[int, typer.Option(help="Pairs of prompts in a batch.", min=2)] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-5,
    bare_share: Annotated[
        float, typer.Option(help="Share of prompts that are shown without their expert's template; 0 as in the paper.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune the encoder; HELP is the help text."""
    from routers.embedders.tune import TuneConfig, tune_encoder
    from server.cli.progress import phases

    out = out.expanduser().resolve()
    examples = _from_file(library) if library else _from_gateway(url, api_key)
    config = TuneConfig(
        share=share, steps=steps, num_pairs=pairs, learning_rate=learning_rate, bare_share=bare_share, seed=seed
    )
    with phases() as progress:
        report = tune_encoder(model, examples, out, config, lambda done, total: progress("tune", done, total))
    if as_json:
        print_json({"folder": str(out)} | asdict(report))
    else:
        _show(report, out)


def _show(report: TuneReport, out: Path) -> None:
    before, after = report.before, report.after
    typer.echo(f"trained on {', '.join(report.trained)}")
    typer.echo(f"{'':32}{'before':>8}{'after':>8}")
    typer.echo(f"{'loss':32}{before.loss:8.3f}{after.loss:8.3f}")
    for label, field in (("trained", "accuracy_trained"), ("untrained", "accuracy_untrained")):
        if getattr(before, field) is not None:
            typer.echo(f"{f'left-out examples, {label}':32}{_percent(before, field):>8}{_percent(after, field):>8}")
    typer.echo(f"Use it:  moergate fit NAME --router lora_retriever --embedder {out}")


def _percent(measured: Measured, field: str) -> str:
    return f"{100 * getattr(measured, field):.1f} %"


def _from_file(path: Path) -> dict[str, list[str]]:
    """Read the examples from a file in the format of ``moergate serve --library``."""
    try:
        manifests = orjson.loads(path.read_bytes())
        examples = {manifest["name"]: manifest.get("examples", []) for manifest in manifests}
    except OSError as error:
        raise ClientError(f"{path} cannot be read: {error}.", 2) from None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ClientError(f"{path} is not a library: a JSON list of objects with 'name' and 'examples'.", 2) from None
    for name, texts in examples.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ClientError(f"{path}: the examples of {name} must be a list of texts.", 2)
    return examples


def _from_gateway(url: str, api_key: str | None) -> dict[str, list[str]]:
    records: list[dict[str, Any]] = call("GET", url, "/admin/adapters", key=api_key)["data"]
    return {
        record["name"]: call("GET", url, f"/admin/adapters/{quote(record['id'], safe='@')}", key=api_key)["examples"]
        for record in records
        if record["num_examples"]
    }
