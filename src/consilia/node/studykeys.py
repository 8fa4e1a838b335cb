"""A key of its own for every study: what the node keeps of it at rest opens with it alone.

    DIR/secrets/rest.key          the node's key, 32 random bytes, made at the site
    DIR/studykeys/<study>.key     the study's key, AES-256-GCM under the node's

Under a study's key lie updates that wait for the hub, what compression remembers of its jobs,
and the secrets of its masked rounds; docs/adr/0033 says what does not, and why. Keys are files
and not rows: a row that is deleted goes on lying in the database's free pages and its log. A
destroyed key is overwritten, removed, and never made anew for the same study before the site
accepts it again; so what was copied aside stays shut, unless the key was copied with it.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import ConsiliaError, Refused, StorageError
from consilia.files import sync_folder
from consilia.node.identity import FOLDER as SECRETS
from consilia.node.store import Store, hashed_name
from consilia.privacy import filecrypt

FOLDER = "studykeys"
NODE_KEY = "rest.key"

Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Rest:
    """How bytes of studies are put to rest. Functions block; any thread may call them."""

    key: Callable[[str], bytes]  # study digest -> its key; Refused once that is destroyed
    random: Random

    def lock(self, study: str, plain: bytes, about: str) -> bytes:
        """Return a few bytes of a study sealed, bound to what they are `about`."""
        return filecrypt.lock(self.key(study), plain, about.encode(), self.random)

    def unlock(self, study: str, kept: bytes, about: str) -> bytes:
        """Return what was sealed; bytes of a release that sealed none are given as they are."""
        if not filecrypt.is_sealed(kept):
            return kept
        return filecrypt.unlock(self.key(study), kept, about.encode())

    def keep(self, study: str, source: int, path: Path, about: str) -> None:
        """Seal an open file of a study into `path` (0600), in one step. Not synced.

        Raises StorageError, with nothing at `path` changed.
        """
        key, draft = self.key(study), path.with_name(path.name + ".rest")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            fd = os.open(draft, flags, 0o600)
            try:
                filecrypt.lock_file(key, source, fd, about.encode(), self.random)
            finally:
                os.close(fd)
            draft.replace(path)
        except OSError as e:
            raise StorageError(f"{path} could not be written: {e.strerror}") from None
        finally:
            draft.unlink(missing_ok=True)

    def keep_in_place(self, study: str, path: Path, about: str) -> None:
        """Seal the file at `path`."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.keep(study, fd, path, about)
        finally:
            os.close(fd)

    @contextmanager
    def opened(self, study: str, path: Path, about: str) -> Iterator[int]:
        """Yield a descriptor of the plain bytes, in a file without a name that goes with it.

        A file of a release that sealed none is given as it is. Raises FileNotFoundError, or
        StorageError for one that does not open.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not filecrypt.is_sealed_file(fd):
                yield fd
                return
            with scratch(path.parent) as plain:
                try:
                    filecrypt.unlock_file(self.key(study), fd, plain, about.encode())
                except OSError as e:
                    raise StorageError(f"{path} could not be opened: {e.strerror}") from None
                yield plain
        finally:
            os.close(fd)


@contextmanager
def scratch(folder: Path) -> Iterator[int]:
    """Yield a file for reading and writing that has no name, so that no crash leaves it."""
    with tempfile.TemporaryFile(buffering=0, dir=folder) as file:
        yield file.fileno()


def rest_of(store: Store, random: Random) -> Rest:
    """Return how this node puts the bytes of its studies to rest."""
    return Rest(lambda study: key_of(store, study, random), random)


def key_of(store: Store, study: str, random: Random) -> bytes:
    """Return a study's key, made at its first use. Refused when it is destroyed."""
    if store.rows("SELECT 1 FROM study_ends WHERE study = ?", (study,)):
        raise Refused(
            f"the key of study {study[:80]} is destroyed: what the study had here is deleted, "
            "and nothing more is kept for it unless the site accepts it again"
        )
    directory = store.path.parent
    path, node = _path(directory, study), _node_key(directory, random)
    kept = _read(path)
    if kept is None:
        fresh = filecrypt.lock(node, random(filecrypt.KEY), _about(study), random)
        kept = _first(path, fresh)
    try:
        return filecrypt.unlock(node, kept, _about(study))
    except ConsiliaError as e:
        raise StorageError(
            f"{path} cannot be opened with {directory / SECRETS / NODE_KEY}: {e}. Restore both "
            "from one backup; without them what the study keeps here is lost, and the study is "
            "to be purged: consilia node purge"
        ) from None


def destroy(store: Store, study: str) -> bool:
    """Overwrite and remove a study's key; return whether there was one. StorageError."""
    path = _path(store.path.parent, study)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, bytes(os.fstat(fd).st_size), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        path.unlink()
        sync_folder(path.parent)
    except FileNotFoundError:
        return False
    except OSError as e:
        raise StorageError(
            f"{path}, a study's key, cannot be destroyed: {e.strerror}"
        ) from None
    return True


def faults(store: Store) -> list[str]:
    """Return what is wrong with the keys that are here, study by study. Makes none."""
    directory, found = store.path.parent, []
    for digest, name in store.rows("SELECT digest, name FROM studies ORDER BY name, digest"):
        path = _path(directory, str(digest))
        try:
            kept, node = _read(path), _read(directory / SECRETS / NODE_KEY)
            if kept is not None:
                filecrypt.unlock(node or bytes(filecrypt.KEY), kept, _about(str(digest)))
        except (ConsiliaError, ValueError):
            found.append(f"{name}: {path} cannot be opened with {SECRETS}/{NODE_KEY}")
    return found


def _path(directory: Path, study: str) -> Path:
    return directory / FOLDER / f"{hashed_name(study)}.key"


def _about(study: str) -> bytes:
    return f"key of study {study}".encode()


def _node_key(directory: Path, random: Random) -> bytes:
    path = directory / SECRETS / NODE_KEY
    key = _read(path) or _first(path, random(filecrypt.KEY))
    if len(key) != filecrypt.KEY:
        raise StorageError(
            f"{path} has {len(key)} bytes, needed {filecrypt.KEY}; restore it from a backup"
        )
    return key


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise StorageError(f"{path} cannot be read: {e.strerror}") from None


def _first(path: Path, data: bytes) -> bytes:
    """Write a new file (0600), durable and whole; return it, or what another wrote first."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".") as draft:  # 0600
            draft.write(data)
            draft.flush()
            os.fsync(draft.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft.name, path)
        sync_folder(path.parent)
        return path.read_bytes()
    except OSError as e:
        raise StorageError(f"{path} cannot be written: {e.strerror}") from None
