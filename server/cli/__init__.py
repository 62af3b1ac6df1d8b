"""The command ``moergate``."""

from server.cli.main import main

__all__ = ["main"]
