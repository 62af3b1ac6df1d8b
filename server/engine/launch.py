"""Runs ``vllm serve`` so that it cannot outlive the gateway: ``python -m server.engine.launch PARENT_PID COMMAND …``.

On Linux the kernel is asked to send SIGTERM when the gateway dies, however it dies; then this process becomes
the command. It leaves the terminal's process group, so that Ctrl-C reaches the gateway alone, which lets
running answers end first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Bind this process's life to its parent's and turn into the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the call above
            sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
