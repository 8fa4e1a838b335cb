"""The numbers of an encrypted round at a site: encrypt its update, open the survivors' sum.

Both stream: a few ciphertexts are in memory, however large the model. What is opened is
flooded with noise (privacy.ckks) before it is written.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from consilia.core.weights import Array, Schema, mismatch
from consilia.errors import Refused, UpdateRejected
from consilia.node.masking import Turn, changes, slots
from consilia.privacy import ckks, encrypted
from consilia.privacy.noise import Stream
from consilia.wire import frames
from consilia.wire.v1 import Metrics, Task


def encrypt(  # noqa: PLR0913, PLR0917 - what is encrypted, with what, where to
    task: Task, turn: Turn, update: Path, base: Path, out: Path, weight: float, metrics: Metrics
) -> frames.Header:
    """Write the encrypted form of an update to `out` and return its header.

    `weight` is the site's share of the cohort's records. Raises UpdateRejected for a change
    beyond the range of the job, or a number beyond what a ciphertext holds.
    """
    with frames.opened(update) as new, frames.opened(base) as old, out.open("wb") as file:
        header = frames.read_header(new)
        schema = encrypted.schema(header.schema)
        found = encrypted.marks(turn.key, turn.session, schema[0].shape[0])
        _, floats, others = encrypted.groups(header.schema)

        def weighed(group: Schema, limit: float) -> Iterator[Array]:
            for spec in group:
                for change in changes(new, old, header, spec):
                    worst = float(np.abs(change).max())
                    if not worst <= limit:  # False for NaN
                        raise UpdateRejected(
                            f"tensor {spec.name!r}: an update changes a weight by {worst:g}, "
                            f"encryption carries {limit:g} either way: clip the update, or "
                            "raise privacy.range"
                        )
                    yield change.astype(np.float64) * weight

        numbers = (
            iter((np.full(1, weight), slots(metrics) * weight)),
            weighed(floats, task.privacy.range),
            weighed(others, ckks.REACH),
        )
        writer = frames.FrameWriter(file.fileno(), schema)
        for cell in encrypted.encrypt(ckks.Cipher(turn.key), found, turn.site, numbers):
            writer.append(cell)
        return writer.finish()


def size(base: Path) -> int:
    """Return how many bytes an encrypted update of the model at `base` takes."""
    return sum(spec.nbytes for spec in encrypted.schema(frames.read_header(base).schema))


def open_sum(  # noqa: PLR0913, PLR0917 - what is opened, with what, where to
    task: Task, turn: Turn, total: Path, base: Path, out: Path, random: Callable[[int], bytes]
) -> frames.Header:
    """Open the sum at `total` and write what may be released of it to `out`.

    Raises Refused when it is not the sum of the survivors' updates, as far as can be told.
    """
    with frames.opened(total) as source, frames.opened(base) as old, out.open("wb") as file:
        header, model = frames.read_header(source), frames.read_header(old).schema
        if problem := mismatch(header.schema, encrypted.schema(model)):
            raise Refused(f"the sum to be opened does not have the model's form: {problem}")
        (entry,) = header.entries
        pieces = frames.chunks(source, header, entry, bytearray(ckks.CELL))
        opened = encrypted.open_sum(
            ckks.Cipher(turn.key),
            encrypted.marks(turn.key, turn.session, entry.spec.shape[0]),
            turn.survivors,
            (piece.tobytes() for piece in pieces),
            model,
            reach=task.privacy.range,
            stream=Stream(random),
        )
        schema = encrypted.opened(model)
        writer = frames.FrameWriter(file.fileno(), schema)
        for spec in schema:
            done = 0
            while done < spec.size:
                values = next(opened)
                writer.append(frames.raw_bytes(values.astype(spec.dtype)))
                done += values.size
        return writer.finish()
