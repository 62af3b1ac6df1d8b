"""Export and restore a whole library as one file: versions with states, cards, examples and files, keys, the audit log.

The file is a plain tar (weights do not compress):

    backup.json                                   format, and all rows of the library's tables
    adapters/<sha256>/adapter_config.json         for every content whose files are kept
    adapters/<sha256>/adapter_model.safetensors
    <more>                                        small files that the caller adds

A backup may be made while gateways run: it shows one moment, and no file is removed during the export. It holds the
hashes of API keys, not the keys. Protect it like the database: a gateway trusts the hashes that a restore brings.
`restore` treats the file as hostile, like an upload: it accepts only the expected names and sizes, checks every content
against its hash and its base, and writes all files to disk before one transaction makes them a library.
"""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

from adapters_registry.checks.validation import validate_adapter
from adapters_registry.disk import safe_files
from adapters_registry.disk.file_lock import file_lock
from adapters_registry.disk.layout import CONFIG_FILE, SHA256, WEIGHTS_FILE
from adapters_registry.errors import BadBackup
from adapters_registry.library import Library
from adapters_registry.states import AdapterState

FORMAT = 1
INDEX = "backup.json"
MAX_INDEX_BYTES = 1 << 31
MAX_EXTRA_BYTES = 256 << 20

_CONTENT = re.compile(rf"adapters/({SHA256.pattern})/({re.escape(CONFIG_FILE)}|{re.escape(WEIGHTS_FILE)})")
_EXTRA = re.compile(r"policies/[a-z0-9][a-z0-9_.-]{0,62}/(policy\.json|samples\.jsonl)")
_AFTER_RESTORE = {
    AdapterState.VALIDATING.value: AdapterState.REGISTERED.value,
    AdapterState.DRAINING.value: AdapterState.RETIRED.value,
}
"""States of restored versions whose probe or drain was running when the backup was made."""

Progress = Callable[[int, int], None]
Rows = dict[str, list[dict[str, Any]]]


async def export(library: Library, target: Path, extra: Mapping[str, Path], progress: Progress) -> int:
    """Write a backup; it appears whole or not at all. Returns the number of contents.

    Args:
        library: The library.
        target: The file, which is replaced if it exists.
        extra: Small files to add, by their names in the backup.
        progress: Called with the number of contents done and the total.
    """
    async with file_lock(library.storage.lock_file, exclusive=False):
        rows = await library.backup.dump()
        kept = sorted({str(row["sha256"]) for row in rows["adapters"] if row["purged_at"] is None})
        await asyncio.to_thread(_write, library, target, rows, kept, extra, progress)
    return len(kept)


async def restore(library: Library, source: Path, extra_root: Path, progress: Progress) -> int:
    """Fill an empty library from a backup. Returns the number of contents.

    Args:
        library: The library, which must be empty.
        source: The backup.
        extra_root: Folder for the caller's small files.
        progress: Called with the number of contents done and the total.

    Raises:
        BadBackup: The file is damaged or not a Moergate backup; the library stays empty.
        NotEmpty: The library has experts or keys.
    """
    async with file_lock(library.storage.lock_file, exclusive=False):
        rows, num = await asyncio.to_thread(_read, library, source, extra_root, progress)
        await library.backup.load(rows)
    return num


def _write(
    library: Library,
    target: Path,
    rows: Mapping[str, Any],
    kept: Sequence[str],
    extra: Mapping[str, Path],
    progress: Progress,
) -> None:
    partial = target.with_name(f".{target.name}.partial")
    index = orjson.dumps({"format": FORMAT, "tables": rows, "contents": kept})
    try:
        with safe_files.storage_errors(target.parent), partial.open("wb") as sink:
            partial.chmod(0o600)
            with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                _add(tar, INDEX, index)
                for done, sha256 in enumerate(kept):
                    progress(done, len(kept))
                    for name in (CONFIG_FILE, WEIGHTS_FILE):
                        tar.add(library.storage.path_of(sha256) / name, f"adapters/{sha256}/{name}", recursive=False)
                for name, path in extra.items():
                    _add(tar, name, path.read_bytes())
            safe_files.flush(sink)
        partial.replace(target)
        safe_files.fsync_path(target.parent)
        progress(len(kept), len(kept))
    finally:
        partial.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _read(library: Library, source: Path, extra_root: Path, progress: Progress) -> tuple[Rows, int]:
    """Store every content of a backup; returns its rows."""
    try:
        with tarfile.open(source, "r|") as tar:
            return _read_members(tar, library, extra_root, progress)
    except (tarfile.TarError, EOFError) as error:
        raise BadBackup(f"it is not a tar file, or is damaged ({type(error).__name__})") from None
    except FileNotFoundError:
        raise BadBackup("the file does not exist") from None


def _read_members(tar: tarfile.TarFile, library: Library, extra_root: Path, progress: Progress) -> tuple[Rows, int]:
    first = tar.next()
    if first is None or first.name != INDEX or not first.isreg() or first.size > MAX_INDEX_BYTES:
        raise BadBackup(f"it does not begin with {INDEX}")
    rows, missing = _index(_bytes_of(tar, first))
    total = len(missing)
    while missing:
        progress(total - len(missing), total)
        with library.storage.waiting_room() as room:
            sha256 = _receive_content(tar, room, library)
            if sha256 not in missing:
                raise BadBackup("it holds a content that its index does not list")
            facts = validate_adapter(room, library.base, library.limits)
            if facts.sha256 != sha256:
                raise BadBackup(f"the content {sha256[:8]} does not match its hash")
            library.storage.commit(room, facts)
            library.storage.derive(sha256)
            missing.discard(sha256)
    progress(total, total)
    while (member := tar.next()) is not None:
        if not (member.isreg() and _EXTRA.fullmatch(member.name) and member.size <= MAX_EXTRA_BYTES):
            raise BadBackup(f"it has an unexpected entry {member.name[:80]!r}")
        place = extra_root / member.name
        place.parent.mkdir(parents=True, exist_ok=True)
        safe_files.replace_file(place, _bytes_of(tar, member))
    return rows, total


def _receive_content(tar: tarfile.TarFile, room: Path, library: Library) -> str:
    """Copy one content's two files into a waiting room; returns the hash that the backup states."""
    found = ""
    for name, max_bytes in (
        (CONFIG_FILE, library.limits.max_config_bytes),
        (WEIGHTS_FILE, library.limits.max_adapter_bytes),
    ):
        member = tar.next()
        match = _CONTENT.fullmatch(member.name) if member is not None and member.isreg() else None
        stream = tar.extractfile(member) if member is not None and match is not None else None
        if match is None or stream is None or match[2] != name or found not in ("", match[1]):
            raise BadBackup("contents are missing or out of order")
        found = match[1]
        try:
            with safe_files.storage_errors(library.storage.root):
                safe_files.copy_hashed(cast(BinaryIO, stream), room / name, max_bytes)
        except safe_files.TooLarge as error:
            raise BadBackup(f"{name} of {found[:8]} {error}") from None
    return found


def _bytes_of(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return b"" if stream is None else stream.read()


def _index(raw: bytes) -> tuple[Rows, set[str]]:
    try:
        index = orjson.loads(raw)
        if index["format"] != FORMAT:
            raise BadBackup(f"its format is {str(index['format'])[:20]}; this release reads {FORMAT}")
        rows: Rows = {str(name): [dict(row) for row in table] for name, table in index["tables"].items()}
        contents = set(map(str, index["contents"]))
        for row in rows["adapters"]:
            row["state"] = _AFTER_RESTORE.get(row["state"], AdapterState(row["state"]).value)
            if row.get("purged_at") is None and row["sha256"] not in contents:
                raise BadBackup(f"the files of {str(row['name'])[:63]} are missing")
        return rows, contents
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadBackup(f"its {INDEX} cannot be read ({type(error).__name__})") from None
