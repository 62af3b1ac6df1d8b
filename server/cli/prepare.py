"""``moergate prepare``: what a first start would build, built before it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from server.cli.progress import phases
from server.settings import load_settings

HELP = """Build or fetch the base model and the embedder now, so that the first start need not.

For images, machines without a network later, and whoever would rather wait once. What is there already is checked and
left alone."""


def prepare(
    base_model: Annotated[str | None, typer.Option(help="As for serve.")] = None,
    embedder: Annotated[str | None, typer.Option(help="As for serve.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="As for serve.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
) -> None:
    """See `HELP`."""
    from server.cli.prepare_assets import prepare_assets  # numpy and what the embedder needs

    flags = {"base_model": base_model, "embedder": embedder, "cache_dir": cache_dir}
    settings = load_settings(flags, config=config)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with phases() as progress:
        encoder, model = prepare_assets(settings, progress)
    encoder.close()
    typer.echo(f"base model  {model}\nembedder    {encoder.name}")
