"""kill -9 at any moment: the library opens, every listed expert is whole, nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import adapters_registry
from adapters_registry.checks.base_spec import BaseSpec
from adapters_registry.library import Library
from adapters_registry.stores.database import Database
from adapters_registry.stores.sql import SqlAdapterStore

ROUNDS = 10
CHILD = """
import asyncio, json, random, sys
from pathlib import Path

import pytest
from adapters_registry.library import Library
from adapters_registry.records import Manifest

def say(**event):
    print(json.dumps(event), flush=True)

async def main(home, folders, seed):
    choose = random.Random(seed)
    say(do="start")
    library = await Library.open(home)
    while True:
        name = choose.choice(["one", "two", "three"])
        say(do="begin", name=name)
        record = await library.register_folder(Manifest(name=name, examples=["a", "b"]), choose.choice(folders))
        say(do="done", name=name, version=record.version)
        if choose.random() < 0.3:
            say(do="begin", name=name)
            await library.retire(name)
            await library.purge(name)

home, folders, seed = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir()), int(sys.argv[3])
import structlog
structlog.configure(processors=[lambda *_: (_ for _ in ()).throw(structlog.DropEvent)])
asyncio.run(main(home, folders, seed))
"""


async def crash(home: Path, folders: Path, seed: int, *, early: bool) -> list[dict[str, str]]:
    """Let a process register for a random while, kill it, and return what it said."""
    root = Path(adapters_registry.__file__).parents[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(home), str(folders), str(seed), cwd=root, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said: list[dict[str, str]] = []
    while not said or (not early and said[-1]["do"] != "done"):
        said.append(json.loads(await process.stdout.readline()))
    try:  # the moment of the kill is what is random here
        await asyncio.wait_for(process.wait(), random.Random(seed).uniform(0, 0.4))
    except TimeoutError:
        process.kill()
    rest = await process.stdout.read()
    assert await process.wait() == -9
    return said + [json.loads(line) for line in rest.splitlines() if line.endswith(b"}")]


@pytest.mark.slow
async def test_kill_at_any_moment(tmp_path: Path, home: Path, write_adapter: Callable[..., Path]) -> None:
    folders = tmp_path / "folders"
    folders.mkdir()
    for seed in range(6):
        write_adapter(seed=seed).rename(folders / str(seed))
    acknowledged: set[tuple[str, str]] = set()
    for number in range(ROUNDS):
        said = await crash(home, folders, number, early=number % 3 == 0)
        acknowledged |= {(event["name"], event["version"]) for event in said if event["do"] == "done"}
        library = await Library.open(home)
        assert await library.find_damaged() == ()
        for name in ("one", "two", "three"):
            last = [event for event in said if event.get("name") == name][-1:]
            if last and last[0]["do"] == "done":
                assert (await library.get(name)).version == last[0]["version"]
        await library.close()
    database = Database(f"sqlite:///{home / 'registry.sqlite3'}")
    kept = {(record.name, record.version) for record in await SqlAdapterStore(database).list()}
    await database.close()
    assert acknowledged
    assert acknowledged <= kept


async def test_what_a_kill_left_is_cleaned(home: Path, base: BaseSpec) -> None:
    library = await Library.open(home, base=base)
    leftover = library.storage.incoming / "leftover"
    leftover.mkdir()
    await library.clean_orphans(0)
    assert not leftover.exists()
    await library.close()
