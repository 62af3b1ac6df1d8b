"""Windows of tasks: the last prompts, per key, bounded."""

import numpy as np

from server.planning.recent_task_prompts import TaskWindows


def vector(number: int) -> np.ndarray:
    return np.full(2, number, np.float32)


def test_a_window_holds_the_last_prompts_of_its_task_and_key() -> None:
    windows = TaskWindows(max_tasks=3, max_prompts=2)
    windows.add("key", "e", "t", "one", vector(1))
    windows.add("key", "e", "t", "two", vector(2))
    found = windows.add("key", "e", "t", "three", vector(3))
    assert found.texts == ("two", "three")
    np.testing.assert_array_equal(found.embeddings, [[2, 2], [3, 3]])
    assert windows.add("other", "e", "t", "mine", vector(4)).texts == ("mine",)
    assert windows.add("key", "other", "t", "mine", vector(4)).texts == ("mine",)


def test_the_least_recently_used_task_is_forgotten() -> None:
    windows = TaskWindows(max_tasks=2)
    for task in ("a", "b", "a", "c"):
        windows.add("key", "e", task, task, vector(0))
    assert windows.add("key", "e", "a", "again", vector(0)).texts == ("a", "a", "again")
    assert windows.add("key", "e", "b", "again", vector(0)).texts == ("again",)
