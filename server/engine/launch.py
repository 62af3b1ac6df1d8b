"""Runs ``vllm serve`` so that it cannot outlive the gateway: ``python -m server.engine.launch PARENT_PID COMMAND …``.

On Linux the kernel sends SIGTERM to this process when the gateway dies, however it dies; then this process becomes the
command. It leaves the terminal's process group, so that Ctrl-C reaches only the gateway, which lets running answers
finish first. Packages that vLLM brings and that cannot be imported are hidden from the command and its children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping
from pathlib import Path

from routers.embedders.unusable_packages import hide_unusable_packages

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Bind this process's life to its parent's and become the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before the call above
            sys.exit(1)
    hide_from_children(hide_unusable_packages(), os.environ)
    os.execvp(command[0], command)  # noqa: S606


def hide_from_children(packages: tuple[str, ...], environ: MutableMapping[str, str]) -> None:
    """Set the variables that hide packages from Python processes: vLLM starts several, which import transformers."""
    if packages:
        folder = str(Path(__file__).parent / "hidden_packages")
        environ["MOERGATE_HIDDEN_PACKAGES"] = " ".join(packages)
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, environ.get("PYTHONPATH"))))


if __name__ == "__main__":
    main(sys.argv[1:])
