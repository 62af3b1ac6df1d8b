"""``moergate serve``: its options are made from the settings, so that no setting can lack a flag."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from server.cli.demo import demo_flags, install_models, missing_packages
from server.settings import Settings, load_settings

if TYPE_CHECKING:
    from server.gateway import Gateway

HELP = """Start the gateway, and (unless --engine-url is given) an engine for it.

Every option can also be set as MOERGATE_… in the environment or in a TOML file (--config); options win over the
environment, the environment over the file. Policies, prices and sources are set in the file."""

DEMO_HELP = (
    "Serve the packaged demo library: ten small experts, 12 slots, rank 16. Installs the packages with its models "
    "if they are missing."
)

FILE_ONLY = frozenset({"policies", "prices", "sources"})


def command() -> Callable[..., None]:
    """The command's function, with one option for each setting."""

    def run(**flags: Any) -> None:
        config, demo = flags.pop("config"), flags.pop("demo")
        if demo:
            prepare_demo(Console(stderr=True))
            flags = demo_flags(flags)
        _run(load_settings(flags, config=config))

    parameters = [
        inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Path | None, typer.Option(help="A TOML file with settings.")],
        ),
        inspect.Parameter(
            "demo",
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option("--demo", help=DEMO_HELP)],
        ),
    ]
    for name, field in Settings.model_fields.items():
        if name in FILE_ONLY:
            continue
        kind = _option_type(field.annotation)
        shown = f"{field.description} [default: {shown_default(name)}]"
        option = typer.Option(f"--{name.replace('_', '-')}", help=shown, show_default=False, envvar=None)
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )
        )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def prepare_demo(console: Console) -> None:
    """Install the packages with the demo's models unless they are there; raises SettingsError."""
    if missing := missing_packages():
        console.print(
            f"Installing the demo's models: {', '.join(missing)} (usually less than a minute, once).", soft_wrap=True
        )
        install_models(missing)


def _option_type(annotation: Any) -> Any:
    """The type that typer is told: literals as text (the settings check them), optional ones without None."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    return str if get_origin(annotation) is Literal else annotation


def shown_default(name: str) -> str:
    """A setting's default as help and documentation show it."""
    field = Settings.model_fields[name]
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Path):
        return str(value).replace(str(Path.home()), "~", 1)
    return "none" if value in (None, []) or isinstance(value, BaseModel) else str(value)


def _run(settings: Settings) -> None:
    from server.api.run_server import bind, serve
    from server.cli.prepare_assets import prepare_assets
    from server.telemetry.logs import configure_logging

    configure_logging(settings.log_level, settings.log_format)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    listener = bind(settings.host, settings.port)
    console = Console(stderr=True)
    console.print(
        "Preparing the base model and the embedder (usually 2 s; the first time up to a minute).", soft_wrap=True
    )
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as bars:
        tasks: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=done, total=total)

        encoder, model = prepare_assets(settings, progress)

    def on_ready(gateway: Gateway) -> None:
        console.print(ready_text(gateway, listener.getsockname()[1]), soft_wrap=True, highlight=False, markup=False)

    if not settings.engine_url:
        console.print("Starting the engine and registering the library (usually 20 to 60 s).", soft_wrap=True)
    _one_thread_for_products()
    _calm_garbage_collection()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(serve(settings, encoder, model, listener, on_ready))


def _one_thread_for_products() -> None:
    """Keep matrix products of routers on the calling thread: they are small, and the other cores are the engine's.

    Measured on two busy cores, eight callers at once: the median decision of `two_part` took 141 ms with two threads
    that wait for each other, and 12 ms with one.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(limits=1, user_api="blas")


def _calm_garbage_collection() -> None:
    """What exists now stays, so it need not be looked at again; what requests make is freed by counting.

    Measured on the hot path: the default thresholds cost about a sixth of a request's time. What is left for the
    collector is what ends seldom, connections and replaced routers; it is old by then, and waits for the last number.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 10)


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def ready_text(gateway: Gateway, port: int) -> str:
    """What to try, once the gateway is ready."""
    host = gateway.settings.host if gateway.settings.host not in ("0.0.0.0", "::") else "127.0.0.1"  # noqa: S104
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    catalog = gateway.watcher.catalog
    example = "What is the capital of France?"
    for record in sorted(catalog.experts.values(), key=lambda record: record.name):
        if record.examples and not set(record.examples[0]) & set("'\"\\\n"):
            example = record.examples[0]
            break
    return f"""
Moergate is ready: {url}  ({len(catalog.experts)} experts, policies: {", ".join(catalog.policies)})

Try it:
  curl -i {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "{example}"}}]}}'

  moergate route "{example}"      which expert, and why
  {url}/docs   the API     {url}/metrics   for Prometheus
"""
