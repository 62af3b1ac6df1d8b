"""``moergate prepare``: build what a first start would build."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from server.cli.progress import phases
from server.settings import load_settings

HELP = """Build or fetch the base model and the embedder now, so that the first start does not have to.

Use it for images, and for machines that will have no network. Existing files are checked and kept."""


def prepare(
    base_model: Annotated[str | None, typer.Option(help="As for serve.")] = None,
    embedder: Annotated[str | None, typer.Option(help="As for serve.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="As for serve.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
) -> None:
    """Build or fetch the assets; HELP is the help text."""
    from server.cli.prepare_assets import prepare_assets  # imported on use: it loads numpy and the embedder's packages

    flags = {"base_model": base_model, "embedder": embedder, "cache_dir": cache_dir}
    settings = load_settings(flags, config=config)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with phases() as progress:
        encoder, model = prepare_assets(settings, progress)
    encoder.close()
    typer.echo(f"base model  {model}\nembedder    {encoder.name}")
