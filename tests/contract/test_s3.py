"""What a bucket adds to the law of `Blobs`: other machines, a small disk, damaged objects."""

import os
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from restkit import CONFIG, running_hub, weights

from consilia.errors import ConfigError, StorageError
from consilia.hub import atrest
from consilia.hub.config import S3, HubConfig, check, s3_key
from consilia.hub.s3blobs import S3Blobs, bucket, check_frame
from consilia.wire import frames
from s3kit import KEY, new_bucket, s3_blobs, s3_client

A, B, C = ("b3:" + letter * 64 for letter in "abc")


def put(blobs: S3Blobs, digest: str, data: bytes) -> None:
    with blobs.open_spool("x") as spool:
        spool.append(data)
        spool.sync()
    blobs.adopt("x", digest)


def content(blobs: S3Blobs, digest: str) -> bytes:
    with blobs.open(digest) as blob:
        return os.pread(blob.fd, blob.size + 1, 0)


def test_another_machine_reads_what_one_has_stored(s3_address: str, tmp_path: Path) -> None:
    name = new_bucket(s3_address)
    first = s3_blobs(s3_address, tmp_path / "one", name=name)
    put(first, A, b"frame of one")
    second = s3_blobs(s3_address, tmp_path / "two", name=name)
    assert second.blobs() == {A: 12} and second.spools() == {}
    assert content(second, A) == b"frame of one"
    assert first.delete(A)
    assert second.blobs() == {} and second.size(A) is None


def test_a_disk_that_was_lost_loses_nothing(s3_address: str, tmp_path: Path) -> None:
    """Also when the process died between the bucket's copy and the disk's."""
    name = new_bucket(s3_address)
    lost = s3_blobs(s3_address, tmp_path / "lost", name=name)
    put(lost, A, b"kept")
    (tmp_path / "lost/blobs" / A.replace(":", "-")).unlink()
    assert content(lost, A) == b"kept"
    with lost.open_spool("x") as spool:
        spool.append(b"kept")
    lost.adopt("x", A)
    lost.adopt("x", A)
    assert lost.blobs() == {A: 4}


def test_the_folder_keeps_what_was_used_last(s3_address: str, tmp_path: Path) -> None:
    blobs = s3_blobs(s3_address, tmp_path, cache_bytes=25)
    for digest, at in ((A, 100), (B, 200)):
        put(blobs, digest, digest[-1].encode() * 10)
        os.utime(tmp_path / "blobs" / digest.replace(":", "-"), (at, at))
    with blobs.open(A) as held:  # used now
        put(blobs, C, b"c" * 10)
        cached = {p.name[-1] for p in (tmp_path / "blobs").iterdir()}
        assert cached == {"a", "c"}
        put(blobs, "b3:" + "d" * 64, b"d" * 30)  # larger than the folder may be
        assert os.pread(held.fd, 10, 0) == b"a" * 10, "an open file stays readable"
    assert {p.name[-1] for p in (tmp_path / "blobs").iterdir()} == {"d"}
    assert content(blobs, B) == b"b" * 10
    assert len(blobs.blobs()) == 4


def test_a_frame_is_fetched_once(s3_address: str, tmp_path: Path) -> None:
    name = new_bucket(s3_address)
    put(s3_blobs(s3_address, tmp_path / "one", name=name), A, b"x" * 1000)
    looked: list[str] = []
    second = s3_blobs(
        s3_address, tmp_path / "two", name=name, check=lambda fd, digest: looked.append(digest)
    )
    threads = [threading.Thread(target=content, args=(second, A)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert looked == [A]


def test_what_is_not_the_frame_is_not_read(s3_address: str, tmp_path: Path) -> None:
    name = new_bucket(s3_address)
    blobs = s3_blobs(s3_address, tmp_path, name=name, check=check_frame)
    with blobs.open_spool("x") as spool:
        header = frames.write(spool.fd, {"w": np.arange(100, dtype=np.float32)})
    blobs.adopt("x", header.digest)
    local = tmp_path / "blobs" / header.digest.replace(":", "-")
    local.unlink()
    assert content(blobs, header.digest)
    local.unlink()
    client, key = s3_client(s3_address), f"hub/blobs/{local.name}"
    whole = client.get_object(Bucket=name, Key=key)["Body"].read()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", whole + b"x"):
        client.put_object(Bucket=name, Key=key, Body=damaged)
        with pytest.raises(StorageError, match="is not blob"):
            blobs.open(header.digest)
        assert not local.exists() and blobs.spools() == {}


def test_a_bucket_that_does_not_answer_is_said(s3_address: str, tmp_path: Path) -> None:
    missing = s3_blobs(s3_address, tmp_path / "a", name="no-such-bucket")
    with pytest.raises(StorageError, match="check the line to the S3 service"):
        missing.blobs()
    with missing.open_spool("x") as spool:
        spool.append(b"abc")
    with pytest.raises(StorageError):
        missing.adopt("x", A)
    assert missing.spooled("x") == 3, "what could not be stored is still there"


def test_a_hub_keeps_its_frames_in_the_bucket(s3_address: str, tmp_path: Path) -> None:
    directory, name = tmp_path / "hub", new_bucket(s3_address)
    config = msgspec.structs.replace(
        CONFIG, s3=S3(name, endpoint=s3_address, credentials_file="secrets/s3.key")
    )
    atrest.init(directory, config)
    secret = directory / "secrets/s3.key"
    secret.write_text("\n".join(KEY))
    secret.chmod(0o600)
    frame = tmp_path / "frame"
    with frame.open("wb") as out:
        header = frames.write(out.fileno(), weights())
    with running_hub(directory) as hub, hub.client("operator") as client:
        assert client.upload_frame(frame).digest == header.digest
    objects = s3_client(s3_address).list_objects_v2(Bucket=name)["Contents"]
    assert [o["Key"] for o in objects] == ["blobs/" + header.digest.replace(":", "-")]
    gone = msgspec.structs.replace(config, s3=S3("gone", endpoint=s3_address))
    (directory / "hub.yaml").write_text(msgspec.yaml.encode(gone).decode())
    with pytest.raises(StorageError, match="in the bucket"), running_hub(directory):
        pass


def test_settings_are_checked(tmp_path: Path) -> None:
    for endpoint in ("http://s3.example.org", "http://127.0.0.1:80@s3.example.org/"):
        with pytest.raises(ConfigError, match="must begin with https://"):
            bucket("b", endpoint=endpoint)
    with pytest.raises(ConfigError, match="cache_bytes"):
        check(HubConfig(s3=S3("b", cache_bytes=1)))
    secret = tmp_path / "key"
    secret.write_text("\n".join(KEY))
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        s3_key(tmp_path, S3("b", credentials_file="key"))
    secret.chmod(0o600)
    assert s3_key(tmp_path, S3("b", credentials_file="key")) == KEY
    assert s3_key(tmp_path, S3("b")) is None
    secret.write_text("one")
    with pytest.raises(ConfigError, match="two lines"):
        s3_key(tmp_path, S3("b", credentials_file="key"))
