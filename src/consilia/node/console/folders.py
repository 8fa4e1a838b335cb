"""The folders that a data manager may look into from a browser: the data roots, no others."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from consilia.errors import ConfigError, DataError, NotFound, Refused, Wrong
from consilia.wire.console.datasets import FileView, FolderView

SUFFIXES = (".csv", ".tsv", ".tab", ".parquet", ".pq")
DATABASES = (".duckdb", ".ddb")
_SHOWN = (*SUFFIXES, *DATABASES)
MOST = 1000  # entries shown of one folder


def within(path: str, roots: Iterable[str], node: Path) -> Path:
    """Return the real path of `path`; Refused when it lies outside of every data root.

    Links are followed first, so none leads out. The node's own folder, with its keys, is
    never inside.
    """
    known = [Path(root).resolve() for root in roots]
    if not known:
        raise ConfigError(
            "no data root is configured, so no file can be chosen here; the administrator of "
            "this machine sets console.data_roots in node.yaml, as [/srv/data]"
        )
    if "\0" in path or not Path(path).is_absolute():
        raise ConfigError(Wrong("path", f"{path[:200]!r}", "an absolute path"))
    try:
        real = Path(path).resolve()
    except (OSError, RuntimeError):
        raise NotFound(f"path: {path[:200]} cannot be followed") from None
    if not any(real.is_relative_to(root) for root in known):
        raise Refused(
            f"path: {path[:200]} lies outside of the data roots ({', '.join(map(str, known))})"
        )
    if real.is_relative_to(node.resolve()):
        raise Refused("path: this is the node's own folder, which holds its keys")
    return real


def listing(path: str, roots: tuple[str, ...], node: Path) -> FolderView:
    """Return the tables, databases and folders in a folder; the roots themselves for ""."""
    if not path:
        return FolderView(
            "", "", tuple(sorted(str(Path(root).resolve()) for root in roots)), ()
        )
    real = within(path, roots, node)
    try:
        entries = sorted(os.scandir(real), key=lambda e: e.name)
    except OSError as e:
        raise DataError(f"path: {real} cannot be listed: {e.strerror}") from None
    folders, files = [], []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            status = entry.stat()
        except OSError:
            continue  # a link to nowhere
        if stat.S_ISDIR(status.st_mode):
            folders.append(str(real / entry.name))
        elif stat.S_ISREG(status.st_mode) and entry.name.lower().endswith(_SHOWN):
            files.append(
                FileView(
                    entry.name,
                    str(real / entry.name),
                    status.st_size,
                    status.st_mtime,
                    entry.name.lower().endswith(DATABASES),
                )
            )
    top = any(real == Path(root).resolve() for root in roots)
    return FolderView(
        str(real),
        "" if top else str(real.parent),
        tuple(folders[:MOST]),
        tuple(files[:MOST]),
        truncated=max(len(folders), len(files)) > MOST,
        tables=sum(not file.database for file in files),
    )
