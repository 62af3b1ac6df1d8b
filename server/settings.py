"""All settings of the gateway, in one typed tree.

Precedence: command-line flags, then ``MOERGATE_…`` environment variables, then a TOML file, then the defaults
here. Field names are the flags (``max_loras`` is ``--max-loras``), the variables (``MOERGATE_MAX_LORAS``) and
the TOML keys; the descriptions are the documentation. Unknown keys and bad values stop start-up and are
named. Nothing is read at import.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from adapters_registry.visibility import Audience
from routers.library.subset_config import SubsetConfig
from server.sources.config import SourceSettings

ENV_PREFIX = "MOERGATE_"

CLIENT_VARIABLES = frozenset({"MOERGATE_URL", "MOERGATE_API_KEY", "MOERGATE_CONFIG"})
"""Variables with our prefix that are not server settings: the command line's own, and the one that names the file."""


class SettingsError(Exception):
    """A setting is unknown or bad; the text names it, says where it came from, and what is allowed."""


class PolicySettings(BaseModel):
    """One policy: which router, with which options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    router: str = Field("knn", description="Name of the routing method.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the router's own config.")
    embedder: str | None = Field(
        default=None,
        description="Another embedder than the gateway's: as --embedder, or base for the base's hidden states.",
    )
    subset: SubsetConfig | None = Field(default=None, description="Use a part of the library only: method, size, seed.")
    data: Path | None = Field(
        default=None, description="JSON Lines of prompts with answers, for methods that need them."
    )
    tags: list[str] = Field(
        default_factory=list, description="Of keys that are confined by tags, only those with one of these may ask it."
    )
    tenant: str = Field(
        default="", description="Of keys that are confined to a tenant, only those of this one may ask it."
    )

    @property
    def audience(self) -> Audience:
        """Whom the policy is for."""
        return Audience(frozenset(self.tags), self.tenant)


class Price(BaseModel):
    """Price in the operator's currency per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(0.0, ge=0, description="Per million prompt tokens.")
    output: float = Field(0.0, ge=0, description="Per million generated tokens.")


class Settings(BaseSettings):
    """See the module's docstring."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback needs API keys.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    home: Path = Field(
        default_factory=lambda: Path.home() / ".moergate",
        description="Folder of everything that must survive: the library, keys, fitted policies.",
    )
    cache_dir: Path | None = Field(
        None, description="Folder for what can be rebuilt (base model, embedder); default: the user's cache folder."
    )
    database_url: str | None = Field(None, description="Database of the library; default: SQLite in the home folder.")
    library: Path | None = Field(
        None, description="A library.json whose experts are registered at start-up; those that are there are kept."
    )

    base_model: str = Field(
        "SmolLM2-135M-Instruct",
        description="The base: a folder, a hub name, or the packaged SmolLM2-135M-Instruct.",
    )
    base_name: str | None = Field(
        None, description="Name of the base for callers; default: the last part of base_model."
    )
    embedder: str = Field(
        "all-MiniLM-L6-v2",
        description="Sentence embedder: the packaged all-MiniLM-L6-v2, a folder, a hub name, or hashing (a double).",
    )
    embed_cache_entries: int = Field(20_000, ge=0, description="Embeddings kept in memory, least recently used go.")

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Number format of the engine; auto is the base model's own, or float32 on a CPU without bfloat16.",
    )
    max_loras: int = Field(8, ge=1, le=1024, description="Experts that are resident in the engine at once (slots).")
    max_recipes: int = Field(
        32, ge=1, le=1024, description="Different experts, mixes and gates that the engine computes in one batch."
    )
    max_lora_rank: int = Field(64, description="Largest rank of an expert.")
    max_model_len: int = Field(4096, ge=16, description="Longest prompt and answer together, in tokens.")
    kv_cache_gib: float = Field(2.0, gt=0, description="Memory of the engine's KV cache on a CPU, in GiB.")
    engine_url: list[str] = Field(
        default_factory=list, description="URL of a running engine; repeat for replicas. Then none is started here."
    )
    engine_key: str | None = Field(None, description="API key that the engines at engine_url expect.", repr=False)
    engine_arg: list[str] = Field(
        default_factory=list, description="An argument passed on to vllm serve as it is; repeat for more."
    )

    policies: dict[str, PolicySettings] = Field(
        default_factory=lambda: {"auto": PolicySettings(router="knn")},
        description="Policies by name; auto is the default one.",
    )
    prices: dict[str, Price] = Field(
        default_factory=dict,
        description="Prices per million tokens: for base, for expert (any expert), or for one expert's name.",
    )

    max_concurrency: int = Field(256, ge=1, description="Requests that are worked on at once.")
    max_queue: int = Field(512, ge=0, description="Requests that may wait for a place; more get 429.")
    queue_timeout_s: float = Field(30.0, gt=0, description="Longest wait for a place, in seconds; then 429.")
    connect_timeout_s: float = Field(5.0, gt=0, description="Longest wait for a connection to an engine.")
    first_token_timeout_s: float = Field(300.0, gt=0, description="Longest wait for a stream's first bytes.")
    total_timeout_s: float = Field(1800.0, gt=0, description="Longest time for a whole answer.")
    drain_timeout_s: float = Field(60.0, ge=0, description="Time that running answers get when the gateway stops.")

    max_body_bytes: int = Field(16 << 20, ge=1024, description="Largest request body.")
    max_upload_bytes: int = Field(1 << 30, ge=1024, description="Largest upload of an adapter.")
    max_adapter_bytes: int = Field(4 << 30, ge=1024, description="Largest adapter, unpacked.")
    source_dirs: list[Path] = Field(
        default_factory=list,
        description="Folders from which adapters may be registered by path; none given: any folder.",
    )
    sources: SourceSettings = Field(
        default_factory=SourceSettings,
        description="Where else adapters may be fetched from: URLs, object stores, the hub; nothing by default.",
    )

    probe_adapters: bool = Field(
        True,
        description="Ask the engine whether a registered adapter works before it is offered: that it changes the "
        "base's answers, that they are finite, and that its name gives its own answers.",
    )
    kept_versions: int = Field(
        2, ge=0, description="Replaced versions of an expert whose files are kept, so that they can be rolled back to."
    )
    conversation_idle_s: float = Field(
        300.0,
        ge=0,
        description="A replaced version goes on answering conversations that began on it until they have been silent "
        "for so many seconds.",
    )

    count_stream_tokens: bool = Field(
        False,
        description="Ask the engine for the token counts of streams, and take them out of the answer again. "
        "Without it a stream counts as one token an event, and its prompt's tokens are known only if the caller "
        "asks for usage.",
    )
    metrics_experts: int = Field(
        100,
        ge=1,
        description="Experts, and API keys, with a label of their own in the metrics; others share the label other.",
    )
    decision_log: Literal["off", "decisions", "embeddings", "prompts"] = Field(
        "decisions",
        description="What the database keeps of requests: nothing; who decided what for whom; also the embeddings of "
        "prompts without an expert, which can reveal something of them; also the routed texts.",
    )
    decision_log_sample: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that the decision log keeps, chosen by request id."
    )
    decision_log_days: int = Field(14, ge=1, le=3650, description="Days after which decisions and feedback go.")
    otlp_endpoint: str | None = Field(
        None,
        description="URL of an OpenTelemetry collector that gets a trace of each request, by OTLP over HTTP, as "
        "http://localhost:4318. The standard variables OTEL_… (headers, sampling, resource) count. None: no tracing.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severity to log.")
    log_format: Literal["console", "json"] = Field("console", description="For people, or one JSON object a line.")

    @field_validator("max_lora_rank")
    @classmethod
    def _rank_that_vllm_takes(cls, value: int) -> int:
        allowed = (1, 8, 16, 32, 64, 128, 256, 320, 512)
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(map(str, allowed))}")
        return value

    @field_validator("policies")
    @classmethod
    def _default_policy_exists(cls, value: dict[str, PolicySettings]) -> dict[str, PolicySettings]:
        if "auto" not in value:
            raise ValueError("needs a policy named auto: it is the default")
        return value

    @field_validator("engine_url")
    @classmethod
    def _http_urls(cls, value: list[str]) -> list[str]:
        for url in value:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} must start with http:// or https://")
        return [url.rstrip("/") for url in value]

    @field_validator("otlp_endpoint")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        return cls._http_urls([value])[0] if value else None

    @property
    def served_base_name(self) -> str:
        """What callers call the base."""
        return self.base_name or self.base_model.rstrip("/").rsplit("/", 1)[-1]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment; the file joins in `load_settings`."""
        return init_settings, env_settings


def load_settings(
    flags: Mapping[str, Any], *, config: Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Merge flags, environment, file and defaults.

    Args:
        flags: Settings given on the command line; a None counts as not given.
        config: A TOML file; without it ``$MOERGATE_CONFIG``, then ``moergate.toml`` in the home folder if it exists.
        environ: The environment; None is the process's own (the only one that pydantic-settings reads).

    Raises:
        SettingsError: Naming the key, its source, and what is allowed.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in flags.items() if value is not None and value != []}
    _refuse_unknown_variables(environ)
    path = config or (Path(environ["MOERGATE_CONFIG"]) if environ.get("MOERGATE_CONFIG") else None)
    if path is None:
        home = Path(given.get("home") or environ.get("MOERGATE_HOME") or Path.home() / ".moergate")
        implicit = home / "moergate.toml"
        path = implicit if implicit.is_file() else None
    from_file = _read_toml(path) if path else {}
    in_env = {key.removeprefix(ENV_PREFIX).lower() for key in environ if key.upper().startswith(ENV_PREFIX)}
    merged = {key: value for key, value in from_file.items() if key not in in_env} | given
    try:
        return Settings(**merged)
    except ValidationError as error:
        lines = [f"  {_name_of(item['loc'])}: {item['msg']}" for item in error.errors()]
        raise SettingsError("Settings that cannot be used:\n" + "\n".join(lines)) from None
    except Exception as error:  # pydantic-settings wraps bad JSON in a variable in its own error type
        raise SettingsError(f"Settings that cannot be read: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"The settings file {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} is not TOML: {error}.") from None
    for key in content:
        if key not in Settings.model_fields:
            raise SettingsError(f"The settings file {path} has an unknown key {key!r}{_hint(key)}.")
    return content


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    for variable in environ:
        if not variable.startswith(ENV_PREFIX) or variable in CLIENT_VARIABLES:
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        if key not in Settings.model_fields:
            raise SettingsError(f"The environment variable {variable} is not a setting{_hint(key)}.")


def _hint(key: str) -> str:
    close = difflib.get_close_matches(key, Settings.model_fields, n=1)
    return f"; did you mean {close[0]!r}" if close else ""


def _name_of(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "settings"
