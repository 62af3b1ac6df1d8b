"""``moergate library``: back up and restore a whole library; works on the home folder and database directly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.home import Home, with_library
from server.cli.progress import phases
from server.settings import load_settings

if TYPE_CHECKING:
    from adapters_registry.library import Library

app = typer.Typer(no_args_is_help=True)

DatabaseUrl = Annotated[str | None, typer.Option(help="The library's database, if it is not in the home folder.")]


@app.command("export")
def export_library(
    file: Annotated[Path, typer.Argument(help="File of the backup; replaced if it exists.")],
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Write all experts, versions, files, keys' hashes, the audit log, and policies of the admin API to one file.

    Gateways may keep running. After a restore, policies are fitted again from their definitions.
    """

    from adapters_registry import backup

    settings = load_settings({"home": home, "database_url": database_url})

    async def work(library: Library) -> None:
        folder = settings.home / "policies"
        definitions = {
            f"policies/{path.relative_to(folder)}": path
            for pattern in ("*/policy.json", "*/samples.jsonl")
            for path in sorted(folder.glob(pattern))
        }
        with phases() as progress:
            num = await backup.export(library, file, definitions, lambda done, total: progress("files", done, total))
        typer.echo(f"{file} has {num} adapters' files, {file.stat().st_size / 2**20:.1f} MiB.")

    with_library(settings, work)


@app.command("restore")
def restore_library(
    file: Annotated[Path, typer.Argument(help="A backup written by 'moergate library export'.")],
    home: Home = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Fill an empty home folder and database from a backup. Every file is checked against its hash."""

    from adapters_registry import backup

    settings = load_settings({"home": home, "database_url": database_url})

    async def work(library: Library) -> None:
        with phases() as progress:
            num = await backup.restore(library, file, settings.home, lambda done, total: progress("files", done, total))
        active = len(await library.list())
        typer.echo(f"{active} experts are active again, with {num} adapters' files in all.")

    with_library(settings, work)
