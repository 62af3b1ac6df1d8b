"""The command ``moergate``: its sub-commands, their help, and how errors end the process.

Exit codes: 0 done, 1 the request failed, 2 wrong usage or settings, 3 no gateway answers.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from server.cli import (
    abstentions,
    adapters,
    compare,
    compose,
    config,
    decisions,
    fake_engine,
    fit,
    keys,
    library,
    policies,
    prepare,
    route,
    score,
    serve,
    tune,
)
from server.cli.client import ClientError

app = typer.Typer(
    name="moergate",
    help="One OpenAI-compatible endpoint over a library of LoRA experts.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve", help=serve.HELP)(serve.command())
app.command("prepare", help=prepare.HELP)(prepare.prepare)
app.add_typer(adapters.app, name="adapters", help="Register, list, show and remove adapters of a running gateway.")
app.add_typer(library.app, name="library", help="Back up a whole library as one file, and restore it.")
app.command("compose", help=compose.HELP)(compose.compose)
app.command("fit", help=fit.HELP)(fit.fit)
app.add_typer(policies.app, name="policies", help="List, show and remove policies, and list the routing methods.")
app.command("tune", help=tune.HELP)(tune.tune)
app.command("score", help=score.HELP)(score.score)
app.command("compare", help=compare.HELP)(compare.compare)
app.add_typer(decisions.app, name="decisions", help="List decisions for requests, and export them to learn from.")
app.command("abstentions", help=abstentions.HELP)(abstentions.abstentions)
app.command("route", help=route.HELP)(route.route)
app.add_typer(keys.app, name="keys", help="Create, list and revoke API keys in a home folder.")
app.add_typer(config.app, name="config", help="Show the settings and where they come from.")
app.command("fake-engine", help=fake_engine.HELP)(fake_engine.fake_engine)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"moergate {version('moergate')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """One OpenAI-compatible endpoint over a library of LoRA experts."""


def main() -> None:
    """Entry point of the command."""
    from adapters_registry.errors import RegistryError
    from routers.errors import EmbedderError, RouterError
    from server.cli.package_root import check_one_root
    from server.engine.base_model import BaseModelError
    from server.engine.errors import EngineMissing
    from server.settings import SettingsError

    try:
        check_one_root()
        app()
    except ClientError as error:
        _fail(str(error), error.exit_code)
    except (RegistryError, BaseModelError, EmbedderError, EngineMissing) as error:
        _fail(str(error), 1)
    except (SettingsError, RouterError) as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, code: int) -> None:
    Console(stderr=True).print("Error:", style="bold red", end=" ")
    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)
    sys.exit(code)
