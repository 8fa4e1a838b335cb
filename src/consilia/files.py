"""Files that are there whole or not at all, that last, and that only their owner reads."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from consilia.errors import ConfigError, StorageError


def write_whole(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a file (0600) durably: a reader, and a crash, find the old content or the new.

    Its folder is made (0700) where it is missing. Raises StorageError with nothing at `path`
    changed. Two writers at once are the caller's to keep apart: they would share the draft.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            draft.unlink(missing_ok=True)  # what a crash has left
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as out:
                out.writelines([data] if isinstance(data, bytes) else data)
                out.flush()
                os.fsync(fd)
            draft.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as e:
        raise StorageError(f"{path} cannot be written: {e.strerror}") from e


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are durable; OSError where the disk refuses."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def first_line(path: Path, key: str) -> str:
    """Return the first line of a secret's file; ConfigError where others can read it, too.

    `key` is the setting that names the file.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{key}: {path} is readable by others; run: chmod 600 {path}")
        found = path.read_text("utf-8").partition("\n")[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{key}: {path} cannot be read: {e}") from None
    if not found:
        raise ConfigError(f"{key}: {path} holds nothing in its first line")
    return found
