"""Train the demo library's experts and write its lists.

    python examples/demo_library/train.py                     all experts (about an hour on two cores)
    python examples/demo_library/train.py --only date_iso     one of them (repeatable)
    python examples/demo_library/train.py --lists             only library.json and held_out.jsonl

Writes `adapters/<name>/`, `library.json` (cards and example prompts) and `held_out.jsonl` to `server/demo_library`.
Experts train side by side, one process and one core each: that is faster than one expert on two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "server" / "demo_library"
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402

from examples.demo_library.shapes import SHAPES  # noqa: E402
from examples.demo_library.tasks import TASKS  # noqa: E402
from server.engine.base_model import PACKAGED_BASE_MODEL, BaseModelError, default_cache_dir, ensure_base_model  # noqa: E402

if TYPE_CHECKING:
    ProgressQueue = queue.Queue[tuple[str, int, int, float]]

LICENSE = "Apache-2.0"


def library_manifests() -> list[dict[str, object]]:
    """One manifest per expert: where its files are, its card, and the prompts that routers learn from."""
    return [
        {
            "name": task.name,
            "source": {"path": f"adapters/{task.name}"},
            "card": {
                "description": task.description,
                "tags": list(task.tags),
                "tasks": [task.name],
                "languages": ["en"],
                "license": LICENSE,
            },
            "examples": task.examples(),
        }
        for task in TASKS.values()
    ]


def held_out_rows() -> list[dict[str, str]]:
    """The test prompts of all experts."""
    return [
        {"expert": task.name, "prompt": sample.prompt, "answer": sample.answer}
        for task in TASKS.values()
        for sample in task.held_out()
    ]


def write_lists(folder: Path) -> None:
    """Write `library.json` and `held_out.jsonl` into `folder`."""
    manifests = json.dumps(library_manifests(), indent=2, ensure_ascii=False)
    (folder / "library.json").write_text(manifests + "\n", encoding="utf-8")
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in held_out_rows())
    (folder / "held_out.jsonl").write_text(rows, encoding="utf-8")


def train_one(name: str, base_folder: str, out: Path, num_threads: int, reports: ProgressQueue) -> str:
    """Train one expert in this process (imports torch, so only called in a worker)."""
    import torch

    from examples.demo_library.training import train_expert

    torch.set_num_threads(num_threads)
    shape = SHAPES[name]
    samples = TASKS[name].samples("train", shape.num_samples)
    out.mkdir(parents=True, exist_ok=True)

    def progress(step: int, num_steps: int, loss: float) -> None:
        reports.put((name, step, num_steps, loss))

    train_expert(samples, shape, base_folder, out, seed=17, progress=progress)
    return name


def train_all(names: list[str], base_folder: str, adapters: Path, jobs: int, console: Console) -> None:
    """Train `names`, `jobs` at a time, with one bar each."""
    context = multiprocessing.get_context("spawn")
    num_threads = max(1, (os.cpu_count() or 1) // jobs)
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(jobs, mp_context=context) as workers,
        Progress(console=console) as bars,
    ):
        reports: ProgressQueue = manager.Queue()
        running: list[Future[str]] = [
            workers.submit(train_one, name, base_folder, adapters / name, num_threads, reports) for name in names
        ]
        tasks = {name: bars.add_task(name, total=None) for name in names}
        while not (all(future.done() for future in running) and reports.empty()):
            try:
                name, step, num_steps, loss = reports.get(timeout=0.5)
            except queue.Empty:
                continue
            bars.update(tasks[name], completed=step, total=num_steps, description=f"{name} loss {loss:.3f}")
            if step == num_steps or (not console.is_terminal and step % 10 == 0):
                console.print(f"{name}: step {step} of {num_steps}, loss {loss:.4f}")
        for future in running:
            future.result()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the demo library's experts.")
    parser.add_argument("--only", action="append", choices=sorted(TASKS), help="train only this expert (repeatable)")
    parser.add_argument("--out", type=Path, default=LIBRARY, help="folder to write to")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="experts trained side by side")
    parser.add_argument("--base", default=PACKAGED_BASE_MODEL, help="base model: packaged name or folder")
    parser.add_argument("--lists", action="store_true", help="only write library.json and held_out.jsonl")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_lists(arguments.out)
    if arguments.lists:
        return
    try:
        base_folder = ensure_base_model(arguments.base, default_cache_dir())
    except BaseModelError as error:
        sys.exit(str(error))
    train_all(arguments.only or list(TASKS), base_folder, arguments.out / "adapters", max(1, arguments.jobs), console)


if __name__ == "__main__":
    main()
