"""Tasks from folders and files."""

from pathlib import Path

import pytest

from routers.errors import BadSamples
from server.compare.tasks import load_tasks

ROW = '{"prompt": "p%d", "answer": "a"}'


def test_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "val.jsonl").write_text("\n".join(ROW % n for n in range(9)))
    (tmp_path / "one" / "train.jsonl").write_text(ROW % 0)
    (tmp_path / "two.jsonl").write_text('{"prompt": "p", "answer": "", "metric": "none"}')
    tasks = load_tasks(tmp_path, "val", {"one": "one@00000000"}, limit=4)
    assert [(task.name, task.expert, len(task.samples), task.is_scored) for task in tasks] == [
        ("one", "one@00000000", 4, True),
        ("two", None, 1, False),
    ]
    assert tasks == load_tasks(tmp_path, "val", {"one": "one@00000000"}, limit=4)
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(
        '{"prompt": "p", "answer": "a", "expert": "x"}\n{"prompt": "q", "answer": "a", "task": "y"}\n' + ROW % 1
    )
    assert [(task.name, len(task.samples)) for task in load_tasks(mixed, "val", {})] == [
        ("mixed", 1),
        ("x", 1),
        ("y", 1),
    ]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadSamples, match=r"TASK/val\.jsonl"):
        load_tasks(tmp_path, "val", {})
