"""Probes and removal on the real engine: what works passes, what does nothing is rejected, what goes frees memory."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file

from tests.engine.conftest import LIBRARY
from tests.support.processes import Serving, descendants, fetch
from tests.support.waiting import eventually_sync

HIDDEN, KEYS, INNER, LAYERS = 576, 192, 1536, 30
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
RANK = 16


def write_adapter(folder: Path, tensors: dict[str, Any], rank: int, modules: list[str]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": modules, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"bias": "none"}))
    return folder


def large_adapter(folder: Path, seed: int) -> Path:
    """Random weights on every linear layer: 4.9 million numbers, 20 MB in float32."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for path, (d_out, d_in) in SHAPES.items():
            prefix = f"base_model.model.model.layers.{layer}.{path}"
            tensors[f"{prefix}.lora_A.weight"] = rng.normal(scale=0.02, size=(RANK, d_in)).astype(np.float32)
            tensors[f"{prefix}.lora_B.weight"] = rng.normal(scale=0.02, size=(d_out, RANK)).astype(np.float32)
    return write_adapter(folder, tensors, RANK, [path.rpartition(".")[2] for path in SHAPES])


def register(served: Serving, name: str, folder: Path, **more: Any) -> tuple[int, Any]:
    body = {"name": name, "source": {"path": str(folder)}, "examples": ["Write the date 3 May 2020 as ISO."], **more}
    return fetch(served.url + "/admin/adapters", body)


def remove(served: Serving, name: str) -> None:
    request = urllib.request.Request(f"{served.url}/admin/adapters/{name}", method="DELETE")
    with urllib.request.urlopen(request, timeout=30) as response:
        expert_id = json.load(response)["id"]
    eventually_sync(lambda: served.get(f"/admin/adapters/{expert_id}")[1]["state"] == "retired", within=60)


def engine_rss_mib(served: Serving) -> float:
    """Memory of the gateway's engine, all its processes, without what they share with files."""
    total = 0
    for pid in descendants(served.process.pid):
        for line in (Path("/proc") / str(pid) / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1])
    return total / 1024


def test_trained_experts_have_passed_their_probes(served: Serving) -> None:
    records = [r for r in served.get("/admin/adapters")[1]["data"] if r["report"]]
    assert len(records) >= 8
    for record in records:
        report = record["report"]
        assert report["passed"]
        assert report["base_distance"] > 100 * max(report["noise"], report["repeat_distance"], 1e-5), record["id"]


def test_an_adapter_without_effect_is_rejected(served: Serving, tmp_path: Path) -> None:
    source = LIBRARY / "adapters" / "date_iso"
    tensors = {name: t.float().numpy() for name, t in load_file(source / "adapter_model.safetensors").items()}
    config = json.loads((source / "adapter_config.json").read_text())
    faint = {name: t * np.float32(1e-9 if "lora_B" in name else 1) for name, t in tensors.items()}
    folder = write_adapter(tmp_path / "faint", faint, config["r"], config["target_modules"])
    status, answer = register(served, "faint", folder)
    assert status == 400
    assert [problem["where"] for problem in answer["error"]["problems"]] == ["probe.effect"]
    rejected = served.get("/admin/adapters?state=rejected")[1]["data"]
    assert [r["name"] for r in rejected if r["name"] == "faint"] == ["faint"]
    status, _ = fetch(served.url + "/v1/completions", {"model": "faint", "prompt": "x", "max_tokens": 1})
    assert status == 404


@pytest.mark.parametrize("recipe", ["{0}", "mix({0}*0.5,{1}*0.5)"])
def test_removed_experts_free_the_engines_memory(served: Serving, tmp_path: Path, recipe: str) -> None:
    names = [f"large{number}" for number in range(4)]
    for number, name in enumerate(names):
        status, record = register(served, name, large_adapter(tmp_path / name, number), publish={"to": "ready"})
        assert (status, record["state"]) == (201, "ready"), record
        remove(served, record["id"])  # what the engine allocates once is allocated now
    before = engine_rss_mib(served)
    for number, name in enumerate(names):
        assert register(served, name, tmp_path / name)[0] == 201
        model = recipe.format(name, names[number - 1] if number else "date_iso")
        status, answer = fetch(served.url + "/v1/completions", {"model": model, "prompt": "x", "max_tokens": 2})
        assert status == 200, answer
    loaded = engine_rss_mib(served)
    for name in names:
        remove(served, name)
    after = engine_rss_mib(served)
    print(f"{recipe}: {before:.0f} MiB before, {loaded:.0f} with four experts loaded, {after:.0f} after their removal")
    assert loaded - before > 60
    assert after - before < 0.6 * (loaded - before)
