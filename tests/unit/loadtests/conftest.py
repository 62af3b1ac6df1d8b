"""The load tests are scripts, not installed with the package: make their parts importable as they import each other."""

from __future__ import annotations

import sys
from pathlib import Path

_LOADTESTS = str(Path(__file__).resolve().parents[3] / "loadtests")
if _LOADTESTS not in sys.path:
    sys.path.insert(0, _LOADTESTS)
