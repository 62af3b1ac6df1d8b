"""``moergate config``: show the settings that a gateway would run with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.cli.client import AsJson, print_json
from server.settings import Settings, load_settings

app = typer.Typer(no_args_is_help=True)


@app.command()
def show(
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.")] = None,
    home: Annotated[Path | None, typer.Option(help="The home folder, whose moergate.toml is read.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show every setting with its value and meaning; secrets are hidden."""
    settings = load_settings({"home": home}, config=config)
    values = settings.model_dump(mode="json")
    if values["engine_key"]:
        values["engine_key"] = "(set)"
    if as_json:
        print_json(values)
        return
    for name, value in values.items():
        typer.echo(f"{name} = {value!r}")
        typer.echo(f"    {Settings.model_fields[name].description}")
