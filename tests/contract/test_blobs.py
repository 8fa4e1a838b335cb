"""The law of `Blobs`, kept by every implementation; then what only a disk can do wrong."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import consilia
from consilia.errors import ConfigError, Conflict, NotFound, StorageError
from consilia.hub.blobs import Blobs, DiskBlobs, MemoryBlobs
from consilia.hub.sealed import Keys, SealedBlobs
from s3kit import s3_blobs

A, B = "b3:" + "a" * 64, "b3:" + "b" * 64
LEASE = "job-1.3.1.site_a"
SOURCE = str(Path(consilia.__file__).parents[1])


@pytest.fixture(params=["disk", "memory", "s3", "sealed", "sealed s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Blobs]:
    made: Blobs
    if request.param.endswith("s3"):
        made = s3_blobs(request.getfixturevalue("s3_address"), tmp_path)
    else:
        made = MemoryBlobs() if request.param == "memory" else DiskBlobs(tmp_path)
    if request.param.startswith("sealed"):
        made = SealedBlobs(made, Keys((bytes(32),)), os.urandom)
    yield made
    made.close()


def put(blobs: Blobs, name: str, data: bytes) -> None:
    with blobs.open_spool(name) as spool:
        spool.append(data)
        spool.sync()


def content(blobs: Blobs, digest: str) -> bytes:
    with blobs.open(digest) as blob:
        return os.pread(blob.fd, blob.size + 1, 0)


class TestEveryImplementation:
    def test_a_spool_becomes_a_blob(self, blobs: Blobs) -> None:
        with blobs.open_spool(LEASE) as spool:
            assert spool.offset == 0
            assert spool.append(b"abc") == 3
            assert spool.append(memoryview(b"defg")) == 7
            spool.sync()
            assert (spool.offset, blobs.spooled(LEASE)) == (7, 7)
            assert blobs.size(A) is None
        blobs.adopt(LEASE, A)
        assert (blobs.size(A), blobs.spooled(LEASE)) == (7, None)
        assert content(blobs, A) == b"abcdefg"
        assert (blobs.blobs(), blobs.spools()) == ({A: 7}, {})

    def test_a_spool_goes_on_where_it_ended(self, blobs: Blobs) -> None:
        put(blobs, LEASE, b"first")
        with blobs.open_spool(LEASE) as spool:
            assert spool.offset == 5
            assert spool.append(b"+second") == 12
        with blobs.read_spool(LEASE) as blob:
            assert os.pread(blob.fd, 100, 0) == b"first+second"

    def test_the_newest_handle_wins(self, blobs: Blobs) -> None:
        old = blobs.open_spool(LEASE)
        old.append(b"old")
        new = blobs.open_spool(LEASE)
        with pytest.raises(Conflict, match="newer upload"):
            old.append(b"ghost")
        with pytest.raises(Conflict):
            old.sync()
        assert new.append(b"new") == 6
        old.close()
        new.close()
        with pytest.raises(Conflict):
            new.append(b"after close")
        assert blobs.spooled(LEASE) == 6

    def test_an_adopted_spool_takes_no_more(self, blobs: Blobs) -> None:
        with blobs.open_spool(LEASE) as spool:
            spool.append(b"whole")
            blobs.adopt(LEASE, A)
            with pytest.raises(Conflict):
                spool.append(b"more")
        assert content(blobs, A) == b"whole"

    def test_frames_may_be_written_by_descriptor(self, blobs: Blobs) -> None:
        with blobs.open_spool("close.job-1.2") as spool:
            os.pwrite(spool.fd, b"body", 4)
            os.pwrite(spool.fd, b"head", 0)
            assert spool.offset == 8
            spool.sync()
        blobs.adopt("close.job-1.2", A)
        assert content(blobs, A) == b"headbody"

    def test_adopting_again_is_harmless(self, blobs: Blobs) -> None:
        put(blobs, LEASE, b"x")
        blobs.adopt(LEASE, A)
        blobs.adopt(LEASE, A)
        with pytest.raises(NotFound, match="no spool"):
            blobs.adopt(LEASE, B)
        put(blobs, "other", b"x")  # the same content from another site
        blobs.adopt("other", A)
        assert (blobs.blobs(), blobs.spools()) == ({A: 1}, {})

    def test_who_reads_a_deleted_blob_reads_on(self, blobs: Blobs) -> None:
        put(blobs, LEASE, b"still here")
        blobs.adopt(LEASE, A)
        with blobs.open(A) as blob:
            assert blobs.delete(A)
            assert os.pread(blob.fd, 100, 0) == b"still here"
        assert not blobs.delete(A)
        with pytest.raises(NotFound, match=A):
            blobs.open(A)

    def test_discard_drops_a_spool(self, blobs: Blobs) -> None:
        spool = blobs.open_spool(LEASE)
        spool.append(b"gone")
        blobs.discard(LEASE)
        blobs.discard(LEASE)
        with pytest.raises(Conflict):
            spool.append(b"more")
        spool.close()
        assert blobs.spooled(LEASE) is None
        with pytest.raises(NotFound):
            blobs.read_spool(LEASE)
        with blobs.open_spool(LEASE) as again:
            assert again.offset == 0

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "../x", "a/b", ".hidden", "A", "a\0", "x" * 201, "a\n"]
    )
    def test_no_name_leads_out_of_the_spool(self, blobs: Blobs, name: str) -> None:
        for ask in (blobs.open_spool, blobs.read_spool, blobs.spooled, blobs.discard):
            with pytest.raises(ConfigError, match="not allowed"):
                ask(name)
        with pytest.raises(ConfigError):
            blobs.adopt(name, A)

    def test_a_spool_name_may_be_as_long_as_the_limit(self, blobs: Blobs) -> None:
        put(blobs, "x" * 200, b"1")
        assert blobs.spooled("x" * 200) == 1

    @pytest.mark.parametrize(
        "digest", ["", "b3:", "../../etc/passwd", A[:-1], A + "0", A.upper()]
    )
    def test_only_digests_name_blobs(self, blobs: Blobs, digest: str) -> None:
        put(blobs, LEASE, b"x")
        for ask in (blobs.open, blobs.size, blobs.delete):
            with pytest.raises(ConfigError, match="not a digest"):
                ask(digest)
        with pytest.raises(ConfigError):
            blobs.adopt(LEASE, digest)
        assert blobs.spooled(LEASE) == 1

    def test_lists_tell_sizes(self, blobs: Blobs) -> None:
        put(blobs, LEASE, b"abc")
        blobs.adopt(LEASE, A)
        put(blobs, LEASE, b"de")
        put(blobs, "third", b"")
        assert blobs.blobs() == {A: 3}
        assert blobs.spools() == {LEASE: 2, "third": 0}

    def test_many_threads(self, blobs: Blobs) -> None:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                digest = f"b3:{number:064x}"
                for turn in range(10):
                    with blobs.open_spool(f"lease-{number}") as spool:
                        for _ in range(20):
                            spool.append(bytes([number]) * 100)
                    blobs.adopt(f"lease-{number}", digest)
                    assert content(blobs, digest) == bytes([number]) * 2000
                    assert blobs.delete(digest) == (turn >= 0)
            except BaseException as e:
                failures.append(e)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert (blobs.blobs(), blobs.spools()) == ({}, {})

    def test_one_digest_adopted_by_many_at_once(self, blobs: Blobs) -> None:
        for number in range(8):
            put(blobs, f"lease-{number}", b"same")
        threads = [
            threading.Thread(target=blobs.adopt, args=(f"lease-{n}", A)) for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert content(blobs, A) == b"same"
        assert (blobs.blobs(), blobs.spools()) == ({A: 4}, {})


class TestDisk:
    def test_everything_survives_a_restart(self, tmp_path: Path) -> None:
        first = DiskBlobs(tmp_path)
        put(first, "done", b"whole")
        first.adopt("done", A)
        put(first, LEASE, b"half")
        first.close()
        second = DiskBlobs(tmp_path)
        assert (second.blobs(), second.spools()) == ({A: 5}, {LEASE: 4})
        with second.open_spool(LEASE) as spool:
            assert spool.append(b" and half") == 13

    def test_close_fences_what_is_open(self, tmp_path: Path) -> None:
        blobs = DiskBlobs(tmp_path)
        spool = blobs.open_spool(LEASE)
        blobs.close()
        with pytest.raises(Conflict):
            spool.append(b"late")
        spool.close()

    def test_nobody_else_may_read(self, tmp_path: Path) -> None:
        blobs = DiskBlobs(tmp_path / "hub")
        put(blobs, LEASE, b"x")
        blobs.adopt(LEASE, A)
        put(blobs, LEASE, b"x")
        for path in (tmp_path / "hub").rglob("*"):
            needed = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == needed, path

    def test_links_are_not_followed(self, tmp_path: Path) -> None:
        blobs = DiskBlobs(tmp_path)
        victim = tmp_path / "victim"
        victim.write_bytes(b"secret")
        (tmp_path / "spool" / LEASE).symlink_to(victim)
        (tmp_path / "blobs" / A.replace(":", "-")).symlink_to(victim)
        with pytest.raises(StorageError):
            blobs.open_spool(LEASE)
        with pytest.raises(StorageError):
            blobs.read_spool(LEASE)
        with pytest.raises(StorageError):
            blobs.open(A)
        assert victim.read_bytes() == b"secret"

    def test_the_reserve_is_kept_free(self, tmp_path: Path) -> None:
        blobs = DiskBlobs(tmp_path, reserve=1 << 60)
        with blobs.open_spool(LEASE) as spool:
            with pytest.raises(StorageError, match="disk is full: free some space"):
                spool.append(b"x")
            assert spool.offset == 0

    def test_a_full_disk_leaves_the_spool_as_it_was(self, tmp_path: Path) -> None:
        """A real short write and a real refusal: the kernel's limit on the size of a file."""
        script = """if True:
            import resource, sys
            from pathlib import Path
            from consilia.errors import StorageError
            from consilia.hub.blobs import DiskBlobs
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            blobs = DiskBlobs(Path(sys.argv[1]))
            spool = blobs.open_spool("lease")
            assert spool.append(b"a" * 60_000) == 60_000
            try:
                spool.append(b"b" * 60_000)
            except StorageError as e:
                assert "full" in str(e), e
            else:
                raise SystemExit("not refused")
            assert spool.offset == 60_000, spool.offset
            assert spool.append(b"c" * 40_000) == 100_000
            spool.sync()
        """
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path],
            env=os.environ | {"PYTHONPATH": SOURCE},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        data = (tmp_path / "spool" / "lease").read_bytes()
        assert data == b"a" * 60_000 + b"c" * 40_000

    def test_what_was_synced_outlives_a_kill(self, tmp_path: Path) -> None:
        script = """if True:
            import os, signal, sys
            from pathlib import Path
            from consilia.hub.blobs import DiskBlobs
            blobs = DiskBlobs(Path(sys.argv[1]))
            for number in range(5):
                spool = blobs.open_spool(f"lease-{number}")
                spool.append(b"x" * 1000)
                spool.sync()
                blobs.adopt(f"lease-{number}", f"b3:{number:064x}")
            blobs.open_spool("half").append(b"y" * 500)
            os.kill(os.getpid(), signal.SIGKILL)
        """
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path],
            env=os.environ | {"PYTHONPATH": SOURCE},
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        blobs = DiskBlobs(tmp_path)
        assert blobs.blobs() == {f"b3:{n:064x}": 1000 for n in range(5)}
        assert blobs.spools() == {"half": 500}
