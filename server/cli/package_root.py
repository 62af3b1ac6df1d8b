"""Checks that the three packages come from one place.

Their names are generic. If another project's ``server`` or ``routers`` is on the path, the mixture would fail in
confusing ways.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGES = ("server", "routers", "adapters_registry")


def check_one_root() -> None:
    """Raise ImportError unless the three packages are in the same folder."""
    roots = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ImportError(f"Moergate's package {name!r} is missing: install moergate again.")
        roots[name] = Path(spec.origin).resolve().parent.parent
    if len(set(roots.values())) > 1:
        places = ", ".join(f"{name} in {root}" for name, root in roots.items())
        raise ImportError(
            f"Moergate's packages come from different places ({places}): another project's package of the same "
            "name comes first on the path. Run moergate in an environment or a folder without it."
        )
