"""What an engine can do wrong.

EngineFault
├── EngineUnreachable   it certainly has not begun: another replica may be tried
├── EngineBroke         it closed the connection before the answer's end
└── EngineRefused       it answered a question of ours with an error

`EngineMissing` is no fault of an engine: there is none to start.
"""

from __future__ import annotations


class EngineFault(Exception):
    """Root of the faults."""


class EngineUnreachable(EngineFault):
    """No connection, or it closed before the first byte of an answer."""


class EngineBroke(EngineFault):
    """The answer ended before its end."""


class EngineRefused(EngineFault):
    """What we asked is refused; says why in the engine's words, which may repeat what was asked."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class EngineMissing(Exception):
    """vLLM, or something that it needs, is not installed, so no engine can be started here."""
