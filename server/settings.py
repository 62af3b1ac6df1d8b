"""All settings of the gateway, in one typed tree.

Precedence: command-line flags, then ``MOERGATE_…`` environment variables, then a TOML file, then these defaults. A
field's name gives its flag (``max_loras`` is ``--max-loras``), its variable (``MOERGATE_MAX_LORAS``) and its TOML key;
its description is the documentation. Unknown keys and bad values stop start-up with a message that names them. Nothing
is read at import.
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
from server.telemetry.prices import Price

ENV_PREFIX = "MOERGATE_"

CLIENT_VARIABLES = frozenset({"MOERGATE_URL", "MOERGATE_API_KEY", "MOERGATE_CONFIG"})
"""Variables with the prefix that are not settings of the server."""


class SettingsError(Exception):
    """A setting is unknown or invalid; the text names it, its source, and the allowed values."""


class PolicySettings(BaseModel):
    """One policy: its router and the router's options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    router: str = Field("knn", description="Name of the routing method.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the router.")
    embedder: str | None = Field(
        default=None,
        description="Embedder of this policy, as for --embedder; base means the base model's hidden states.",
    )
    subset: SubsetConfig | None = Field(default=None, description="Use only a part of the library: method, size, seed.")
    data: Path | None = Field(
        default=None, description="JSON Lines of prompts with answers, for methods that need them."
    )
    tags: list[str] = Field(
        default_factory=list, description="Tags of the policy; a key that is confined by tags needs one of them."
    )
    tenant: str = Field(
        default="", description="Tenant of the policy; a key that is confined to a tenant must be of this one."
    )

    @property
    def audience(self) -> Audience:
        """The keys that the policy is for."""
        return Audience(frozenset(self.tags), self.tenant)


class Settings(BaseSettings):
    """All settings of a gateway; immutable once loaded."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on. Any address but loopback needs API keys.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    home: Path = Field(
        default_factory=lambda: Path.home() / ".moergate",
        description="Folder for everything that must survive: the library, keys, fitted policies.",
    )
    cache_dir: Path | None = Field(
        None, description="Folder for what can be rebuilt (base model, embedder); default: the user's cache folder."
    )
    database_url: str | None = Field(None, description="Database of the library; default: SQLite in the home folder.")
    library: Path | None = Field(
        None, description="A library.json whose experts are registered at start-up; existing experts are kept."
    )

    base_model: str = Field(
        "SmolLM2-135M-Instruct",
        description="Base model: a folder, a hub name, or the packaged SmolLM2-135M-Instruct.",
    )
    base_name: str | None = Field(
        None, description="Name of the base for callers; default: the last part of base_model."
    )
    embedder: str = Field(
        "all-MiniLM-L6-v2",
        description="Sentence embedder: the packaged all-MiniLM-L6-v2, a folder, a hub name, or hashing (for tests).",
    )
    embed_cache_entries: int = Field(
        20_000, ge=0, description="Embeddings cached in memory; the least recently used are dropped."
    )

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="Number format of the engine; auto is the base model's, or float32 on a CPU without bfloat16.",
    )
    max_loras: int = Field(8, ge=1, le=1024, description="Number of experts resident in the engine at once (slots).")
    max_recipes: int = Field(
        32, ge=1, le=1024, description="Number of different experts, mixes and gates in one batch of the engine."
    )
    max_lora_rank: int = Field(64, description="Largest rank of an expert.")
    max_model_len: int = Field(4096, ge=16, description="Longest prompt and answer together, in tokens.")
    kv_cache_gib: float = Field(2.0, gt=0, description="Memory of the engine's KV cache on a CPU, in GiB.")
    engine_url: list[str] = Field(
        default_factory=list,
        description="URL of a running engine; repeat for replicas. With it, no engine is started here.",
    )
    engine_key: str | None = Field(None, description="API key that the engines at engine_url expect.", repr=False)
    engine_arg: list[str] = Field(
        default_factory=list, description="An argument passed unchanged to vllm serve; repeat for more."
    )

    policies: dict[str, PolicySettings] = Field(
        default_factory=lambda: {"auto": PolicySettings(router="knn")},
        description="Policies by name; auto is the default policy.",
    )
    prices: dict[str, Price] = Field(
        default_factory=dict,
        description="Prices per million tokens: for base, for expert (any expert), or for an expert by name.",
    )

    max_concurrency: int = Field(256, ge=1, description="Maximum number of requests that run at once.")
    max_queue: int = Field(512, ge=0, description="Maximum number of requests in the queue; further requests get 429.")
    queue_timeout_s: float = Field(30.0, gt=0, description="Longest wait in the queue, in seconds; then 429.")
    connect_timeout_s: float = Field(5.0, gt=0, description="Longest wait for a connection to an engine, in seconds.")
    first_token_timeout_s: float = Field(
        300.0, gt=0, description="Longest wait for a stream's first bytes, in seconds."
    )
    total_timeout_s: float = Field(1800.0, gt=0, description="Longest time for a whole answer, in seconds.")
    drain_timeout_s: float = Field(
        60.0, ge=0, description="Time that running answers get when the gateway stops, in seconds."
    )

    max_body_bytes: int = Field(16 << 20, ge=1024, description="Largest request body, in bytes.")
    max_upload_bytes: int = Field(1 << 30, ge=1024, description="Largest upload of an adapter, in bytes.")
    max_adapter_bytes: int = Field(4 << 30, ge=1024, description="Largest adapter after unpacking, in bytes.")
    source_dirs: list[Path] = Field(
        default_factory=list,
        description="Folders from which adapters may be registered by path; without any, all folders.",
    )
    sources: SourceSettings = Field(
        default_factory=SourceSettings,
        description="Remote sources of adapters: URLs, object stores, the hub; none by default.",
    )

    probe_adapters: bool = Field(
        True,
        description="Probe a registered adapter in the engine before it is offered: it must change the base's answers, "
        "its numbers must be finite, and its name must give its own answers.",
    )
    kept_versions: int = Field(
        2, ge=0, description="Number of replaced versions of an expert whose files are kept for rollbacks."
    )
    conversation_idle_s: float = Field(
        300.0,
        ge=0,
        description="Seconds of silence after which a conversation no longer keeps a replaced version in service.",
    )

    count_stream_tokens: bool = Field(
        False,
        description="Request the token counts of streams from the engine, and remove them from the answer. Without it, "
        "each event of a stream counts as one token, and the prompt's tokens are known only if the caller requests "
        "usage.",
    )
    metrics_experts: int = Field(
        100,
        ge=1,
        description="Number of experts, and of API keys, with a separate label in the metrics; the rest share other.",
    )
    decision_log: Literal["off", "decisions", "embeddings", "prompts"] = Field(
        "decisions",
        description="What the database keeps of each request: off, nothing; decisions, the decision and its key; "
        "embeddings, also the embeddings of prompts without an expert (which can reveal parts of them); prompts, also "
        "the routed texts.",
    )
    decision_log_sample: float = Field(
        1.0, ge=0, le=1, description="Share of requests that the decision log keeps, chosen by request id."
    )
    decision_log_days: int = Field(
        14, ge=1, le=3650, description="Days after which decisions and feedback are deleted."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="URL of an OpenTelemetry collector for traces of requests (OTLP over HTTP), such as "
        "http://localhost:4318. The standard variables OTEL_… (headers, sampling, resource) apply. Without it, no "
        "tracing.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest severity that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="Format of the log: text for people, or one JSON object per line."
    )

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
        """Name of the base for callers."""
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
        """Order flags before the environment; `load_settings` adds the file."""
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
        SettingsError: A setting is unknown or invalid; names the key, its source, and the allowed values.
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
