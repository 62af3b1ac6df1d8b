"""A prompt in segments, that is, lines and sentences; the first or the last may be an instruction."""

from __future__ import annotations

import re
from typing import NamedTuple

_BREAK = re.compile(r"\n+|(?<=[.!?:;])\s+")
_LETTER = re.compile(r"\w")


class Parts(NamedTuple):
    """The first and last segment of a prompt, and the prompt without each; all equal for a single segment."""

    first: str
    last: str
    without_first: str
    without_last: str


def parts_of(text: str) -> Parts:
    """Split a text into its parts; segments without a letter or digit do not count."""
    segments = [segment.strip() for segment in _BREAK.split(text)]
    segments = [segment for segment in segments if _LETTER.search(segment)]
    if len(segments) < 2:
        return Parts(text, text, text, text)
    first, last = segments[0], segments[-1]
    rest = text[text.find(first) + len(first) :].strip()
    start = text[: text.rfind(last)].strip()
    return Parts(first, last, rest or text, start or text)
