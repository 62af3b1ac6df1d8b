"""The latest prompts of each task, for methods that decide per task instead of per prompt.

The caller names the task with ``task_id``; tasks are separate for each key and embedder. Memory is bounded, and the
least recently used task is forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np

from routers.base import TaskWindow, Vector

MAX_TASKS = 1024
MAX_PROMPTS = 32


class TaskWindows:
    """Keeps a window of prompts for each task; for use on the event loop only.

    Args:
        max_tasks: Maximum number of tasks.
        max_prompts: Maximum number of prompts per task.
    """

    def __init__(self, max_tasks: int = MAX_TASKS, max_prompts: int = MAX_PROMPTS) -> None:
        self._max_tasks = max_tasks
        self._max_prompts = max_prompts
        self._tasks: OrderedDict[tuple[str, str, str], deque[tuple[str, Vector]]] = OrderedDict()

    def add(self, key_id: str, embedder: str, task_id: str, text: str, embedding: Vector) -> TaskWindow:
        """Add a prompt to its task, and return the task's window for the router."""
        key = (key_id, embedder, task_id)
        window = self._tasks.setdefault(key, deque(maxlen=self._max_prompts))
        window.append((text, embedding))
        self._tasks.move_to_end(key)
        while len(self._tasks) > self._max_tasks:
            self._tasks.popitem(last=False)
        return TaskWindow(tuple(text for text, _ in window), np.stack([row for _, row in window]))
