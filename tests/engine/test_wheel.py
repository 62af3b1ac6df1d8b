"""The wheel stands alone: installed apart from the checkout, it serves its demo to the first routed answer."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.support.processes import serving
from tests.support.wheels import build_wheel, install_wheel

PORT = 8766
QUESTION = "What is 14 May 2021 in ISO format?"


def test_the_wheel_serves_its_demo(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install_wheel(build_wheel(tmp_path), site)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MOERGATE_HOME")}
    environment["PYTHONPATH"] = str(site)
    where = "import server, routers, adapters_registry as a; print(server.__file__, routers.__file__, a.__file__)"
    shown = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert all(Path(file).is_relative_to(site) for file in shown.stdout.split())
    with serving(tmp_path / "home", PORT, "--demo", "--max-model-len", "512", env=environment, cwd=tmp_path) as gateway:
        gateway.wait_ready()
        body = {"model": "auto", "max_tokens": 16, "messages": [{"role": "user", "content": QUESTION}]}
        request = urllib.request.Request(
            gateway.url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            assert response.headers["x-moergate-recipe"].startswith("date_iso@")
            assert "2021-05-14" in json.load(response)["choices"][0]["message"]["content"]
        log = gateway.log.read_text("utf-8")
    assert "Preparing the base model and the embedder" in log
    assert "Starting the engine" in log
    assert "WARNING" not in log, "the engine's warnings at start-up are nothing a user can act on"
