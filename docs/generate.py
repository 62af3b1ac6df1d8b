"""Writes the pages that are generated from the code: ``python docs/generate.py``. A test keeps them in step.

Settings, metrics, errors, routers and commands are described where they are declared; these pages only collect that.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click
import structure
import typer
from pydantic import BaseModel

from routers.registry import router_class, router_names
from server import errors
from server.cli.main import app
from server.cli.serve import FILE_ONLY, shown_default
from server.settings import ENV_PREFIX, PolicySettings, Settings
from server.sources.config import Credential, SourceSettings
from server.telemetry.families import all_families
from server.telemetry.metrics import Metrics
from server.telemetry.prices import Price

FOLDER = Path(__file__).parent
TABLES: dict[str, type[BaseModel]] = {
    "policies.NAME": PolicySettings,
    "prices.NAME": Price,
    "sources": SourceSettings,
    "sources.credentials.NAME": Credential,
}
NOTE = "<!-- Written by docs/generate.py from the code. Change the code, then run `make docs`. -->\n"


def settings_page() -> str:
    """Every setting: flag, variable, default, meaning."""
    rows = [
        f"| `{name}` | `{_flag(name)}` | `{ENV_PREFIX}{name.upper()}` | `{shown_default(name)}` | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    head = "| key | flag | variable | default | meaning |\n|---|---|---|---|---|\n"
    text = (
        "# Settings\n\nFlags win over environment variables, those over the TOML file (`--config`, `$MOERGATE_CONFIG`, "
        "or `moergate.toml` in the home folder), that over the defaults. Unknown keys and bad values stop "
        "start-up.\n\n"
    )
    return NOTE + text + head + "\n".join(rows) + "\n" + "".join(map(_table, TABLES.items()))


def _table(named: tuple[str, type[BaseModel]]) -> str:
    """The keys of one table of the settings file."""
    name, kind = named
    rows = [f"| `{key}` | {field.description} |" for key, field in kind.model_fields.items()]
    return f"\n## `[{name}]`\n\n| key | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"


def metrics_page() -> str:
    """Every metric: name, type, labels, meaning."""
    labels_of = {family.name: family.labels for family in all_families()}
    rows = []
    for family in sorted(Metrics(max_experts=1, prices={}).registry.collect(), key=lambda f: f.name):
        labels = ", ".join(f"`{name}`" for name in labels_of[family.name])
        name = family.name + ("_total" if family.type == "counter" else "")
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    head = "| metric | type | labels | meaning |\n|---|---|---|---|\n"
    text = inspect.cleandoc(inspect.getmodule(Metrics).__doc__ or "")
    return NOTE + f"# Metrics\n\n`GET /metrics`, for Prometheus. {text}\n\n" + head + "\n".join(rows) + "\n"


def errors_page() -> str:
    """Every error that a caller can see."""
    rows = [
        f"| `{kind.code}` | {kind.status} | `{kind.type}` | {inspect.cleandoc(kind.__doc__ or '')} |"
        for kind in sorted(
            filter(_is_documented, _error_types(errors.GatewayError)), key=lambda kind: (kind.status, kind.code or "")
        )
    ]
    head = "| code | HTTP | type | meaning |\n|---|---|---|---|\n"
    text = (
        '# Errors\n\nEvery error has OpenAI\'s shape, `{"error": {"message", "type", "param", "code"}}`; a refused '
        "adapter also has `problems`, a list of `{where, what, fix}`. After a stream's first byte an error is an "
        "event of that shape, and the stream ends. Errors of the engine itself pass through as they are.\n\n"
    )
    return NOTE + text + head + "\n".join(rows) + "\n"


def routers_page() -> str:
    """Every routing method: its card and its options."""
    parts = [
        NOTE
        + "# Routers\n\nEach name is a `router` of a policy in the settings file, and takes the options below it.\n\n"
        "Standing: *recommended* methods are the ones to start with, *comparison* methods reproduce papers,\n"
        "*baseline* methods show what routing is worth ([measurements](../measurements/policies.md)).\n"
    ]
    for name in router_names():
        kind = router_class(name)
        card = kind.card
        facts = {
            "Paper": card.paper,
            "Standing": card.standing,
            "Expert training": card.expert_training,
            "Expert data": card.expert_data,
            "Routing data": card.routing_dataset,
            "Input granularity": card.input_granularity,
            "Depth": card.depth,
            "Selection": card.selection,
            "Aggregation": card.aggregation,
            "Generalisation": card.generalization,
            "User data": card.user_dataset,
            "Needs": ", ".join(card.needs) or "nothing",
            "Cost": card.cost,
        }
        parts.append(f"## `{name}`: {card.title}\n")
        parts.append("| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in facts.items()) + "\n")
        options = kind.config_class.model_fields.items()
        rows = [f"| `{key}` | `{field.get_default()}` | {field.description or ''} |" for key, field in options]
        parts.append("| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def commands_page() -> str:
    """Every command with its options, but for those of ``serve``, which are the settings."""
    parts = [
        NOTE
        + "# Commands\n\nExit codes: 0 done, 1 refused or failed, 2 wrong usage or settings, 3 no gateway answers.\n"
    ]
    for path, command in _commands(typer.main.get_command(app), "moergate"):
        parts.append(f"## `{path}`\n\n{inspect.cleandoc(command.help or '')}\n")
        if path.endswith(" serve"):
            parts.append("Its options are the [settings](settings.md) and these:\n")
        rows = []
        for parameter in command.params:
            if path.endswith(" serve") and parameter.name in Settings.model_fields.keys():
                continue
            if isinstance(parameter, click.Option) or hasattr(parameter, "opts"):
                help_text = getattr(parameter, "help", "") or ""
                rows.append(f"| `{', '.join(parameter.opts)}` | {help_text} |")
        if rows:
            parts.append("| argument | meaning |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


PAGES = {
    "reference/settings.md": settings_page,
    "reference/metrics.md": metrics_page,
    "reference/errors.md": errors_page,
    "reference/routers.md": routers_page,
    "reference/commands.md": commands_page,
    "explanation/structure.md": lambda: NOTE + structure.page(),
    "images/structure.svg": structure.picture,
}


def _flag(name: str) -> str:
    return "(file only)" if name in FILE_ONLY else f"--{name.replace('_', '-')}"


def _is_documented(kind: type[errors.GatewayError]) -> bool:
    """Whether callers can see the error as such; other modules define kinds of their own on top of these."""
    return kind.__module__ == errors.__name__


def _error_types(kind: type[errors.GatewayError]) -> Iterator[type[errors.GatewayError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _error_types(child)


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from _commands(child, f"{path} {name}")


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
