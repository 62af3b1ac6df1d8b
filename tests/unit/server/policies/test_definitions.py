"""Definitions of policies on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from routers.base import Sample
from server.policies.definitions import PolicySpec, PolicyStore
from server.settings import PolicySettings


def spec_of(router: str, *samples: Sample) -> PolicySpec:
    return PolicySpec("mine", PolicySettings(router=router), samples, "admin")


OLD = spec_of("static_mix", Sample("2 + 2?", "4"), Sample("line\u2028break", "größer", "text", "rouge_l"))
NEW = spec_of("lora_hub", Sample("3 + 3?", "6"))


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many more renames and removals happen before the end, which is a list of one number; empty: no end."""
    left: list[int] = []

    def step() -> None:
        if left:
            if not left[0]:
                raise Killed
            left[0] -= 1

    for name in ("replace", "rename", "unlink"):
        change = getattr(Path, name)

        def counted(path: Path, *args: object, change: object = change, **options: object) -> object:
            step()
            return change(path, *args, **options)  # type: ignore[operator]

        monkeypatch.setattr(Path, name, counted)
    return left


@pytest.mark.parametrize("before", [None, OLD], ids=["new", "replaced"])
@pytest.mark.parametrize("num_changes", range(6))
def test_an_end_at_any_step_leaves_the_old_definition_or_the_new_one(
    tmp_path: Path, changes: list[int], num_changes: int, before: PolicySpec | None
) -> None:
    store = PolicyStore(tmp_path)
    if before:
        store.save(before)
    changes.append(num_changes)
    try:
        store.save(NEW)
        is_whole = True
    except Killed:
        is_whole = False
    changes.clear()
    found = PolicyStore(tmp_path).load()
    assert found in ([NEW], [before] if before else [])
    assert found == [NEW] or not is_whole
    store.save(NEW)  # what the end has left does not stand in the way
    assert store.load() == [NEW]


def test_a_definition_of_an_older_release_is_read_and_written_anew(tmp_path: Path) -> None:
    home = tmp_path / "mine"
    home.mkdir()
    (home / "policy.json").write_text(OLD.settings.model_dump_json())
    rows = [{"prompt": s.prompt, "answer": s.answer, "task": s.task, "metric": s.metric} for s in OLD.samples]
    (home / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    store = PolicyStore(tmp_path)
    assert store.load() == [OLD]
    store.save(spec_of("lora_hub"))
    assert store.load() == [spec_of("lora_hub")]
    assert [file.name for file in home.iterdir()] == ["policy.json"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"router": "kn', '{"router": 3}', '{"other": 1}', '{"samples": 1}', '{"samples": [{}]}']
)
def test_what_cannot_be_read_is_left_where_it_is(tmp_path: Path, content: str) -> None:
    store = PolicyStore(tmp_path)
    store.save(NEW)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "policy.json").write_text(content)
    assert store.load() == [NEW]
    assert (tmp_path / "bad" / "policy.json").read_text() == content


def test_samples_of_any_characters_come_back(tmp_path: Path) -> None:
    samples = (Sample("one\u2028two\u0085three\x0c", "a\u2029b"),)
    spec = PolicySpec("mine", PolicySettings(router="learned_mix"), samples, "admin")
    PolicyStore(tmp_path).save(spec)
    assert PolicyStore(tmp_path).load() == [spec]
