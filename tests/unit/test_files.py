"""Files that are there whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.errors import StorageError
from consilia.files import write_whole


def test_a_file_is_private_and_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "key"
    write_whole(path, b"one")
    (path.parent / ".key.new").write_text("what a crash has left, longer than the key")
    write_whole(path, (piece for piece in (b"tw", b"o")))
    assert path.read_bytes() == b"two"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_on_the_way_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_whole(path, b"one")

    def broken() -> Iterator[bytes]:
        yield b"tw"
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="key cannot be written: No space left"):
        write_whole(path, broken())
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("not ours")
    (tmp_path / ".key.new").symlink_to(other)
    write_whole(tmp_path / "key", b"one")
    assert (other.read_text(), (tmp_path / "key").is_symlink()) == ("not ours", False)
