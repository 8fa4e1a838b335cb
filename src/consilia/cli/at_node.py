"""Commands at a node: its store for the time of a block, and a word to its agent afterwards."""

from pathlib import Path
from typing import TYPE_CHECKING

from consilia.cli.options import node_dir

if TYPE_CHECKING:
    from consilia.node.store import Store


class Opened:
    """The node's store for the time of a block; `poke` tells the agent afterwards."""

    def __init__(self, directory: Path, poke: bool) -> None:
        self._directory = directory
        self._poke = poke

    def __enter__(self) -> "Store":
        from consilia.node import config
        from consilia.node.store import Store

        config.load(self._directory)  # says so when this is no node's directory
        self._store = Store.open(self._directory)
        return self._store

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._store.close()
        if self._poke and kind is None:
            from consilia.node.control import poke

            poke(self._directory)


def opened(directory: Path | None) -> Opened:
    """Open the node's store to read."""
    return Opened(node_dir(directory), poke=False)


def changing(directory: Path | None) -> Opened:
    """Open the node's store to change what may run; the agent acts on it at once."""
    return Opened(node_dir(directory), poke=True)
