"""The command: help, exit codes, JSON, and what it does against a running gateway."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.adapters import make_adapter
from tests.support.processes import Serving, alive, descendants, fetch, free_port, run_cli, serving
from tests.support.waiting import eventually_sync
from tests.unit.routers.embedders import tiny_bert


@pytest.fixture
def served(tmp_path: Path) -> object:
    """A gateway process in front of a double of the engine, both as commands."""
    engine_port, port = free_port(), free_port()
    command = [sys.executable, "-m", "server.cli", "fake-engine", "--port", str(engine_port), "--tokens-per-s", "20"]
    engine = subprocess.Popen(command)
    arguments = (
        "--engine-url",
        f"http://127.0.0.1:{engine_port}",
        "--embedder",
        "hashing",
        "--base-model",
        "tiny-base",
    )
    try:
        with serving(tmp_path / "home", port, *arguments) as running:
            running.wait_ready(60)
            yield running
    finally:
        engine.terminate()
        engine.wait()


def test_adapters_from_the_command_line(served: Serving, tmp_path: Path) -> None:
    url = ("--url", served.url)
    folder = make_adapter(tmp_path / "sql")
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"prompt": "list all orders"}\n{"prompt": "count the customers"}\n')
    added = run_cli("adapters", "add", "sql", str(folder), "--examples-file", str(examples), "--json", *url)
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["num_examples"] == 2
    uploaded = run_cli("adapters", "add", "other", str(folder), "--upload", "--example", "something else", *url)
    assert uploaded.returncode == 0, uploaded.stderr
    listed = json.loads(run_cli("adapters", "list", "--json", *url).stdout)
    assert [record["name"] for record in listed] == ["other", "sql"]
    assert "sql@" in run_cli("adapters", "list", *url).stdout
    assert "list all orders" in run_cli("adapters", "show", "sql", *url).stdout
    eventually_sync(lambda: "sql@" in run_cli("route", "list all orders", *url).stdout)
    assert json.loads(run_cli("route", "x", "--json", *url).stdout)["policy"] == "auto"
    assert run_cli("adapters", "rm", "sql", *url).returncode == 0
    missing = run_cli("adapters", "rm", "sql", *url)
    assert missing.returncode == 1
    assert "sql" in missing.stderr
    refused = run_cli("adapters", "add", "bad", str(tmp_path), *url)
    assert refused.returncode == 1
    assert "→" in refused.stderr


def test_a_signal_lets_running_answers_finish(served: Serving) -> None:
    command = [
        "curl", "-sN", served.url + "/v1/completions", "-H", "content-type: application/json",
        "-d", '{"model": "base", "prompt": "x", "max_tokens": 40, "stream": true}',
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout
        caller.stdout.readline()
        served.process.send_signal(signal.SIGTERM)
        rest = caller.stdout.read()
    assert "word39" in rest
    assert "[DONE]" in rest
    assert served.process.wait(20) == 0


def test_keys_close_the_gateway(served: Serving, tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "home"))
    created = run_cli("keys", "create", "operator", "--scope", "infer", "--scope", "admin", *home)
    key = created.stdout.strip()
    assert key.startswith("mg-")
    eventually_sync(lambda: fetch(served.url + "/v1/models")[0] == 401)  # it looks for changes every second
    assert run_cli("adapters", "list", "--url", served.url).returncode == 1
    assert run_cli("adapters", "list", "--url", served.url, "--api-key", key).returncode == 0
    assert run_cli("adapters", "list", env={"MOERGATE_URL": served.url, "MOERGATE_API_KEY": key}).returncode == 0
    (listed,) = json.loads(run_cli("keys", "list", "--json", *home).stdout)
    assert listed["state"] == "active"
    assert key not in run_cli("keys", "list", *home).stdout
    rotated = json.loads(run_cli("keys", "rotate", listed["id"], "--json", *home).stdout)
    eventually_sync(lambda: fetch(served.url + "/v1/models", headers={"authorization": f"Bearer {key}"})[0] == 401)
    assert fetch(served.url + "/v1/models", headers={"authorization": f"Bearer {rotated['key']}"})[0] == 200
    limits = (
        "--requests-per-minute",
        "60",
        "--budget-per-month",
        "2.5",
        "--max-concurrency",
        "4",
        "--policies",
        "auto",
        *("--tag", "open", "--tag", "text", "--tenant", "bank"),
    )
    app = run_cli("keys", "create", "app", *limits, "--json", *home)
    assert "No prices are set" in app.stderr
    made = json.loads(app.stdout)
    shown = json.loads(run_cli("keys", "show", made["id"], "--json", *home).stdout)
    assert shown["limits"] == {"requests_per_minute": 60, "budget_per_month": 2.5, "max_concurrency": 4}
    assert shown["under_way"] == 0
    assert (shown["policies"], shown["tags"], shown["tenant"]) == (["auto"], ["open", "text"], "bank")
    assert "*; tagged open, text; tenant bank" in run_cli("keys", "list", *home).stdout
    assert shown["used"]["minute"] == {"requests": 0, "tokens": 0, "cost": 0.0}
    assert "requests_per_minute 60" in run_cli("keys", "show", made["id"], *home).stdout
    assert run_cli("keys", "show", "00000000", *home).returncode == 1
    assert run_cli("keys", "revoke", listed["id"], *home).returncode == 0
    assert run_cli("keys", "rotate", listed["id"], *home).returncode == 1
    assert run_cli("keys", "revoke", "00000000", *home).returncode == 1
    database = (tmp_path / "home" / "registry.sqlite3").read_bytes()
    assert key.encode() not in database
    assert key not in served.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (("nonsense",), 2, "No such command"),
        (("adapters", "list", "--url", "http://127.0.0.1:1"), 3, "moergate serve"),
        (("keys", "create", "x", "--scope", "root"), 2, "scopes are"),
        (("keys", "create", "x", "--tenant", "t" * 65), 2, "1 to 64"),
        (("keys", "create", "x", "--tenant", ""), 2, "1 to 64"),
        (("keys", "create", "x", "--budget-per-day", "0"), 2, "budget_per_day"),
        (("serve", "--port", "99999"), 2, "port"),
        (("serve", "--max-lora-rank", "7"), 2, "max_lora_rank"),
        (("serve", "--host", "203.0.113.7", "--embedder", "hashing"), 2, "Cannot listen"),
        (("serve", "--embedder", "/no/such/folder", "--port", "0"), 1, "/no/such/folder"),
        (("serve", "--base-model", "/no/such/folder", "--embedder", "hashing", "--port", "0"), 1, "/no/such/folder"),
        (("adapters", "add", "x", "/no/such/folder"), 2, "does not exist"),
    ],
)
def test_errors_teach_and_have_exit_codes(arguments: tuple[str, ...], code: int, hint: str, tmp_path: Path) -> None:
    done = run_cli(*arguments, env={"MOERGATE_HOME": str(tmp_path / "home"), "COLUMNS": "200"})
    assert done.returncode == code, done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_cli("serve", "--port", port, "--embedder", "hashing", env={"MOERGATE_HOME": str(tmp_path / "h")})
    assert (done.returncode, "--port" in done.stderr) == (2, True)


def test_strangers_need_keys(tmp_path: Path) -> None:
    arguments = (
        "serve",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--embedder",
        "hashing",
        "--engine-url",
        "http://127.0.0.1:1",
    )
    done = run_cli(*arguments, env={"MOERGATE_HOME": str(tmp_path / "h")})
    assert done.returncode == 2
    assert "moergate keys create" in done.stderr


def test_settings_are_shown(tmp_path: Path) -> None:
    env = {"MOERGATE_HOME": str(tmp_path / "h"), "MOERGATE_ENGINE_KEY": "very-secret"}
    shown = run_cli("config", "show", "--json", env=env)
    assert json.loads(shown.stdout)["port"] == 8000
    assert "very-secret" not in shown.stdout + run_cli("config", "show", env=env).stdout
    unknown = run_cli("config", "show", env={"MOERGATE_PROT": "1"})
    assert (unknown.returncode, "did you mean 'port'" in unknown.stderr) == (2, True)


def test_nothing_is_left_running(served: Serving) -> None:
    family = descendants(served.process.pid)
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(20) == 0
    assert not any(alive(pid) for pid in family)


def test_an_encoder_is_tuned_on_what_the_gateway_has(served: Serving, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    tiny_bert.write_model(tmp_path / "tiny", vocab_size=len(tiny_bert.WORDS), max_position_embeddings=48)
    facts = json.loads((tmp_path / "tiny" / "config.json").read_text())
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(facts | {"intermediate_size": tiny_bert.INNER}))
    for name, words in (("left", "a b c d e f"), ("right", "u v w x y z")):
        examples = [flag for word in words.split() for flag in ("--example", f"{word} {words}")]
        added = run_cli("adapters", "add", name, str(make_adapter(tmp_path / name)), *examples, "--url", served.url)
        assert added.returncode == 0, added.stderr
    out = tmp_path / "encoder"
    order = ("tune", str(out), "--model", str(tmp_path / "tiny"), "--share", "1", "--steps", "2", "--url", served.url)
    tuned = run_cli(*order)
    assert tuned.returncode == 0, tuned.stderr
    assert "trained on left, right" in tuned.stdout
    assert f"moergate fit NAME --router lora_retriever --embedder {out}" in tuned.stdout
    fitted = run_cli(
        "fit", "tuned", "--router", "lora_retriever", "--embedder", str(out), "--json", "--url", served.url
    )
    assert fitted.returncode == 0, fitted.stderr
    assert json.loads(fitted.stdout)["embedded_by"].startswith("encoder-")
    again = run_cli(*order)
    assert again.returncode == 1
    assert "not be overwritten" in again.stderr


def test_tune_says_what_is_wrong_with_a_library(tmp_path: Path) -> None:
    library = tmp_path / "library.json"
    for text, message in (
        ("{", "is not a library"),
        ('{"name": "a"}', "is not a library"),
        ('[{"name": "a", "examples": "x"}]', "examples of a"),
        ('[{"name": "a", "examples": ["x"]}]', "--examples-file"),
    ):
        library.write_text(text)
        refused = run_cli("tune", str(tmp_path / "out"), "--library", str(library))
        assert refused.returncode in (1, 2)
        assert message in refused.stderr
    assert run_cli("tune", str(tmp_path / "out"), "--library", str(tmp_path / "absent")).returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["library.json"]


def test_an_import_a_backup_and_a_restore(served: Serving, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    for seed, name in enumerate(("one", "two", "three")):
        make_adapter(folder / name, seed=seed)
        (folder / name / "examples.txt").write_text(f"first of {name}\nsecond of {name}\n")
    (folder / "broken").mkdir()
    (folder / "broken" / "adapter_config.json").write_text("{}")
    command = ("adapters", "import", str(folder), "--url", served.url)
    first = run_cli(*command)
    assert (first.returncode, first.stdout.strip()) == (1, "3 new, 1 refused."), first.stderr
    assert "broken: The adapter was refused" in first.stderr
    make_adapter(folder / "two", seed=9)
    again = json.loads(run_cli(*command, "--json").stdout)
    results = {outcome["name"]: outcome["result"] for outcome in again}
    assert results == {"one": "unchanged", "two": "new version", "three": "unchanged", "broken": "refused"}
    history = run_cli("adapters", "history", "two", "--url", served.url).stdout
    assert "replaced by two@" in history
    versions = json.loads(run_cli("adapters", "versions", "two", "--json", "--url", served.url).stdout)
    assert versions[0]["state"] == "active" and versions[1]["state"] in ("draining", "retired")
    back = run_cli("adapters", "rollback", "two", "--reason", "worse", "--url", served.url)
    assert f"{versions[1]['id']} is active" in back.stdout
    canary = run_cli("adapters", "promote", versions[0]["id"], "--share", "0.25", "--url", served.url)
    assert "cannot become canary" in canary.stderr

    home, other = tmp_path / "home", tmp_path / "restored"
    file = tmp_path / "backup.tar"
    exported = run_cli("library", "export", str(file), "--home", str(home))
    assert exported.returncode == 0 and "4 adapters' files" in exported.stdout, exported.stderr
    assert "3 experts are active" in run_cli("library", "restore", str(file), "--home", str(other)).stdout
    refused = run_cli("library", "restore", str(file), "--home", str(other))
    assert refused.returncode == 1 and "already" in refused.stderr
