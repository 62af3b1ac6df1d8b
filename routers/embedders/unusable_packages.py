"""Hides torchvision, torchaudio and torchcodec where they do not match the installed torch.

vLLM for the CPU brings them from the package index, built for another torch. transformers imports torchvision if it
finds it, and then fails itself ("operator torchvision::nms does not exist"). Nothing here needs these packages.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

PACKAGES = ("torchvision", "torchaudio", "torchcodec")


def hide_unusable_packages() -> tuple[str, ...]:
    """Make packages that cannot be imported look absent in this process; returns their names.

    Call this before transformers is imported. Imports torch.
    """
    hidden = []
    for name in PACKAGES:
        if name in sys.modules or importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except Exception:
            for module in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                del sys.modules[module]
            sys.modules[name] = None  # type: ignore[assignment]  # imports and find_spec now treat it as absent
            hidden.append(name)
    return tuple(hidden)
