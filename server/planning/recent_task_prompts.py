"""The last prompts of each task, for methods that decide for a task and not for a prompt.

A task is what a caller's ``task_id`` says it is, per key and embedder. Bounded: the least recently used task goes.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np

from routers.base import TaskWindow, Vector

MAX_TASKS = 1024
MAX_PROMPTS = 32


class TaskWindows:
    """The windows; used on the event loop only."""

    def __init__(self, max_tasks: int = MAX_TASKS, max_prompts: int = MAX_PROMPTS) -> None:
        self._max_tasks = max_tasks
        self._max_prompts = max_prompts
        self._tasks: OrderedDict[tuple[str, str, str], deque[tuple[str, Vector]]] = OrderedDict()

    def add(self, key_id: str, embedder: str, task_id: str, text: str, embedding: Vector) -> TaskWindow:
        """Add a prompt to its task; what a router may know of the task from now on."""
        key = (key_id, embedder, task_id)
        window = self._tasks.setdefault(key, deque(maxlen=self._max_prompts))
        window.append((text, embedding))
        self._tasks.move_to_end(key)
        while len(self._tasks) > self._max_tasks:
            self._tasks.popitem(last=False)
        return TaskWindow(tuple(text for text, _ in window), np.stack([row for _, row in window]))
