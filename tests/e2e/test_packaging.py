"""The wheel holds exactly the three packages, and they notice when they are mixed with others."""

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from server.cli.demo import MODEL_PACKAGES
from tests.support.wheels import build_wheel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_exactly_the_three_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"server", "routers", "adapters_registry"}
    assert any(name.startswith("adapters_registry/migrations/versions/") for name in names)
    assert "server/py.typed" in names
    assert {"server/demo_library/library.json", "server/demo_library/adapters/date_iso/adapter_config.json"} <= set(
        names
    )
    assert "server/demo_library/adapters/date_iso/adapter_model.safetensors" in names
    assert {"server/console/index.html", "server/console/app.js", "server/console/console.css"} <= set(names)


def test_the_extra_demo_names_the_packages_that_serve_installs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    lines = [line for line in metadata.get_all("Requires-Dist", []) if 'extra == "demo"' in line]
    assert {line.partition(";")[0].strip() for line in lines} == set(MODEL_PACKAGES.values())


def test_packages_from_different_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "routers").mkdir()
    (tmp_path / "routers" / "__init__.py").write_text("")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from server.cli.package_root import check_one_root; check_one_root()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(ROOT)], capture_output=True, text=True)
    assert done.returncode != 0
    assert "different places" in done.stderr
