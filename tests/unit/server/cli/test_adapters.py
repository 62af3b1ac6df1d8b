"""What ``moergate adapters`` makes of its arguments, without a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli import adapters
from server.cli.client import ClientError
from server.sources.proof import digest_of
from tests.support.adapters import make_adapter


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("hub:org/name", {"hub": {"repo": "org/name"}}),
        ("hub:org/name@v1", {"hub": {"repo": "org/name", "revision": "v1"}}),
        ("hub:org/name@refs/pr/1:a/b", {"hub": {"repo": "org/name", "revision": "refs/pr/1", "subfolder": "a/b"}}),
        ("s3://bucket/a.zip", {"url": "s3://bucket/a.zip"}),
        ("folder/a.zip", None),
    ],
)
def test_where_an_adapter_comes_from(source: str, wanted: dict[str, Any] | None) -> None:
    assert adapters._remote(source) == wanted


@pytest.mark.parametrize(
    "arguments",
    [
        ("hub:name",),
        ("hub:a/b/c",),
        ("s3://bucket/a.zip", "--signature", "no-colon"),
        (".", "--sha256", "0" * 64),
        ("absent",),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(adapters.app, ["add", "x", *arguments])
    assert isinstance(result.exception, ClientError)
    assert result.exception.exit_code == 2


def test_the_digest_of_a_folder_and_of_an_archive(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    assert CliRunner().invoke(adapters.app, ["digest", str(folder)]).stdout.strip() == digest_of(folder)
    absent = CliRunner().invoke(adapters.app, ["digest", str(tmp_path)])
    assert "adapter_config.json cannot be read" in str(absent.exception)
