"""What an engine can do wrong.

EngineFault
├── EngineUnreachable   it certainly has not begun: another replica may be tried
└── EngineBroke         it closed the connection before the answer's end
"""

from __future__ import annotations


class EngineFault(Exception):
    """Root of the faults."""


class EngineUnreachable(EngineFault):
    """No connection, or it closed before the first byte of an answer."""


class EngineBroke(EngineFault):
    """The answer ended before its end."""
