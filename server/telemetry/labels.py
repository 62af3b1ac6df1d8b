"""Labels with a bounded number of values, so that no caller can make the metrics grow."""

from __future__ import annotations


class BoundedLabel:
    """Maps names to label values: the first `limit` names keep their own, all later names become ``other``."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) < self._limit:
            self._known.add(name)
            return name
        return "other"
