"""Can a compressed update be read? Asked before it is accepted, while it can be refused.

A whole update is checked value by value while it arrives. Of a compressed one that says little:
positions may be wrong, and a scale may make a value that no float holds. What is accepted has
to fold, so it is read once as the fold will read it. Blocks; memory is a few chunks.
"""

from collections.abc import Iterator

from consilia.algo.compress import Codec, restored
from consilia.core.weights import Array, TensorSpec
from consilia.errors import UpdateRejected
from consilia.hub.blobs import Blobs
from consilia.wire import frames
from consilia.wire.frames import CHUNK
from consilia.wire.v1 import Compression, Task


def misfit(blobs: Blobs, base: str, lease: str, task: Task) -> str | None:
    """Say why the spooled update of a lease cannot be read onto the frame `base`, or None.

    Its schema is known to fit (hub.checks).
    """
    asked = task.privacy.compression or Compression()
    with blobs.open(base) as model, blobs.read_spool(lease) as spool:
        whole, header = frames.read_header(model.fd), frames.read_header(spool.fd)
        buffer = bytearray(CHUNK)

        def reader(fd: int, head: frames.Header, spec: TensorSpec) -> Iterator[Array]:
            entry = next(e for e in head.entries if e.name == spec.name)
            return frames.chunks(fd, head, entry, buffer)

        read = restored(
            Codec(asked.bits, asked.keep),
            lambda spec: reader(spool.fd, header, spec),
            lambda spec: reader(model.fd, whole, spec),
        )
        try:
            for spec in whole.schema:
                for _ in read(spec):
                    pass
        except UpdateRejected as e:
            return f"the compressed update cannot be read: {e}"
    return None
