"""Packages that do not import look absent, so that transformers does without them; others are left alone."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
SCRIPT = """
import importlib.util, sys
from routers.embedders.unusable_packages import hide_unusable_packages
print(hide_unusable_packages())
print([importlib.util.find_spec(name) is not None for name in ("torchvision", "torchaudio")])
print(any(name.startswith("torchvision.") for name in sys.modules))
"""


def test_a_package_that_fails_to_import_looks_absent(tmp_path: Path) -> None:
    for name, code in (("torchvision", "from torchvision import ops\nraise RuntimeError"), ("torchaudio", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    (tmp_path / "torchvision" / "ops.py").write_text("")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["('torchvision',)", "[False, True]", "False"]
