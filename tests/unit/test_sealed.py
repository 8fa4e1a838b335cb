"""Frames at rest: none opens without its key or when changed, no new key loses one."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from consilia.errors import ConfigError, StorageError
from consilia.hub.blobs import DiskBlobs
from consilia.hub.sealed import CHUNK, Keys, SealedBlobs, load_keys, rotate, save_keys

A, B = f"b3:{'a' * 64}", f"b3:{'b' * 64}"
SOURCE = str(Path(__file__).parents[2] / "src")
FIRST = bytes(range(32))


def put(blobs: SealedBlobs | DiskBlobs, digest: str, data: bytes) -> None:
    with blobs.open_spool("in") as spool:
        spool.append(data)
    blobs.adopt("in", digest)


def content(blobs: SealedBlobs, digest: str) -> bytes:
    with blobs.open(digest) as blob:
        return os.pread(blob.fd, blob.size + 1, 0)


def sealed(root: Path, *keys: bytes) -> SealedBlobs:
    return SealedBlobs(DiskBlobs(root, reserve=0), Keys(keys or (FIRST,)), os.urandom)


def file_of(root: Path, digest: str) -> Path:
    return root / "blobs" / digest.replace(":", "-", 1)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
def test_what_went_in_comes_out_and_lies_there_sealed(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    blobs = sealed(tmp_path)
    put(blobs, A, data)
    assert content(blobs, A) == data
    assert content(sealed(tmp_path), A) == data, "after a restart"
    assert (blobs.size(A), blobs.blobs(), blobs.spools()) == (size, {A: size}, {})
    stored = file_of(tmp_path, A).read_bytes()
    assert data[:64] not in stored or size < 8
    put(blobs, B, data)
    assert file_of(tmp_path, B).read_bytes()[64:] != stored[64:], "each file has its own key"


def test_a_changed_file_does_not_open(tmp_path: Path) -> None:
    put(sealed(tmp_path), A, b"x" * (2 * CHUNK))
    put(sealed(tmp_path), B, b"y" * (2 * CHUNK))
    good = file_of(tmp_path, A).read_bytes()
    head, sealed_chunk = 64, CHUNK + 16
    first, second = good[head : head + sealed_chunk], good[head + sealed_chunk :]
    for name, bad in {
        "one bit": good[:-1] + bytes([good[-1] ^ 1]),
        "cut": good[: head + sealed_chunk],
        "grown": good + b"\0" * 16,
        "chunks swapped": good[:head] + second + first,
        "said to be shorter": good[:48] + CHUNK.to_bytes(8, "big") + good[56:64] + first,
        "another blob": file_of(tmp_path, B).read_bytes(),
    }.items():
        file_of(tmp_path, A).write_bytes(bad)
        with pytest.raises(StorageError, match="changed or damaged"):
            sealed(tmp_path).open(A)
            pytest.fail(name)
    file_of(tmp_path, A).write_bytes(good)
    with pytest.raises(StorageError, match="does not hold"):
        sealed(tmp_path, bytes(32)).open(A)


def test_keys_are_kept_from_others(tmp_path: Path) -> None:
    path = tmp_path / "frames.key"
    save_keys(path, Keys((FIRST,)))
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_keys(path).all == (FIRST,)
    assert FIRST.hex() not in repr(load_keys(path))
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_keys(path)
    path.chmod(0o600)
    for text in ("", "abc", "00" * 31, "zz" * 32):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load_keys(path)


def test_frames_from_before_are_sealed_by_the_first_rotation(tmp_path: Path) -> None:
    plain, path = DiskBlobs(tmp_path, reserve=0), tmp_path / "frames.key"
    put(plain, A, b"from before" * 1000)
    assert rotate(plain, path, os.urandom) == 1
    assert b"before" not in file_of(tmp_path, A).read_bytes()
    assert content(sealed(tmp_path, *load_keys(path).all), A) == b"from before" * 1000
    assert rotate(plain, path, os.urandom) == 1, "again, under yet another key"
    assert content(sealed(tmp_path, *load_keys(path).all), A) == b"from before" * 1000


SCRIPT = """if True:
    import os, signal, sys
    from pathlib import Path
    from consilia.hub.blobs import DiskBlobs
    from consilia.hub.sealed import rotate
    root, left = Path(sys.argv[1]), int(sys.argv[2])
    def step(what):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    rotate(DiskBlobs(root, 0), root / "frames.key", os.urandom, step)
"""


def test_a_rotation_killed_anywhere_goes_on(tmp_path: Path) -> None:
    frames = {f"b3:{n:064x}": os.urandom(1000 + n) for n in range(2)}
    made = tmp_path / "made"
    save = made / "frames.key"
    made.mkdir()
    save_keys(save, Keys((FIRST,)))
    for digest, data in frames.items():
        put(sealed(made), digest, data)
    for steps in range(6):  # a new key, two opened and two sealed, done
        root = tmp_path / str(steps)
        shutil.copytree(made, root)
        command = [sys.executable, "-c", SCRIPT, str(root), str(steps)]
        environment = os.environ | {"PYTHONPATH": SOURCE}
        assert (
            subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
        )
        between = sealed(root, *load_keys(root / "frames.key").all)
        assert {d: content(between, d) for d in frames} == frames, f"killed after {steps}"
        rotate(DiskBlobs(root, reserve=0), root / "frames.key", os.urandom)
        (key,) = load_keys(root / "frames.key").all
        assert key != FIRST
        after = sealed(root, key)
        assert {d: content(after, d) for d in frames} == frames
        assert after.spools() == {}
