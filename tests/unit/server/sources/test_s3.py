"""The real S3 driver against a double of S3; for environments with the extra `sources` and moto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

from adapters_registry.errors import BadSource  # noqa: E402
from adapters_registry.sources import Source  # noqa: E402
from tests.support.adapters import make_adapter  # noqa: E402
from tests.support.sources import packed  # noqa: E402
from tests.unit.server.sources.test_fetching import fetcher, files_in, quiet  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # the drivers' own warnings are not ours


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def settings(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("STORE", '{"key": "AKIAEXAMPLE", "secret": "s3cr3t"}')
    store = {"use_for": ["s3://adapters/"], "env": "STORE", "options": {"endpoint_url": endpoint}}
    return {"urls": ["s3://adapters/"], "credentials": {"store": store}}


def upload(endpoint: str, files: dict[str, bytes]) -> None:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="x", aws_secret_access_key="y", region_name="us-east-1"
    )
    client.create_bucket(Bucket="adapters")
    for key, content in files.items():
        client.put_object(Bucket="adapters", Key=key, Body=content)


async def test_archives_and_folders_of_a_bucket(tmp_path: Path, endpoint: str, settings: dict[str, Any]) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    upload(endpoint, {"a.zip": packed(adapter)} | {f"f/{name}": content for name, content in files_in(adapter).items()})
    place = fetcher(tmp_path, settings)
    async with place.fetch(Source(url="s3://adapters/a.zip", credentials="store"), quiet) as fetched:
        assert fetched.path.read_bytes() == packed(adapter)
    async with place.fetch(Source(url="s3://adapters/f/", credentials="store"), quiet) as fetched:
        assert files_in(fetched.path) == files_in(adapter)
    for url, text in (("s3://adapters/absent.zip", "not there"), ("s3://adapters/f.zip", "not there")):
        with pytest.raises(BadSource, match=text):
            async with place.fetch(Source(url=url, credentials="store"), quiet):
                pass


async def test_a_store_that_does_not_answer(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["credentials"]["store"]["options"]["endpoint_url"] = "http://127.0.0.1:9"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(BadSource) as caught:
        async with fetcher(tmp_path, settings).fetch(Source(url="s3://adapters/a.zip", credentials="store"), quiet):
            pass
    assert "s3cr3t" not in caught.value.message
