"""What data centre and sites say to each other about datasets that a study pools.

Every statement travels in a `Sealed` envelope of context "pool", in the site's advertisement,
and is verified by the other side with the key it has pinned for the study. The hub reads them
to know who trains where; it cannot make one up.

    data centre   Channel  --> site        the key that uploads are sealed to
    site          Sent     --> data centre what lies at the hub, sealed
    data centre   Held     --> site, hub   the copy is registered there
    site          Withdrawn -> data centre the copy is to be deleted
    data centre   Deleted  --> site, hub   it is
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from consilia.errors import AuthError, WireError
from consilia.wire.seal import open_sealed
from consilia.wire.v1 import Record, Sealed

CONTEXT = "pool"
PIECE = 1 << 20  # bytes of one piece of an upload; the last may have fewer
MAX_PIECES = 4096
MAX_STATEMENTS = 2000  # of one site
ROUNDING = 5  # counts that the hub reads are rounded down to a multiple of this

T = TypeVar("T")


class Channel(Record, frozen=True, tag="channel"):
    """The data centre takes uploads of a study, sealed to this X25519 public key."""

    study: str  # digest
    key: bytes


class Sent(Record, frozen=True, tag="sent"):
    """A site has sealed a dataset to the data centre and leaves it at the hub."""

    study: str
    upload: str  # sha256:<hex> of the sealed bytes
    channel: bytes  # the data centre's key it is sealed to
    ephemeral: bytes  # the upload's own X25519 public key
    session: bytes  # 32 random bytes
    size: int  # of the sealed bytes
    records: int  # rounded


class Withdrawn(Record, frozen=True, tag="withdrawn"):
    """A site takes its consent to an upload back."""

    study: str
    upload: str


class Held(Record, frozen=True, tag="held"):
    """The data centre has a site's upload, opened and registered."""

    study: str
    site: str
    upload: str
    records: int  # rounded


class Deleted(Record, frozen=True, tag="deleted"):
    """The data centre has deleted its copy of a site's upload."""

    study: str
    site: str
    upload: str


Statement = Channel | Sent | Withdrawn | Held | Deleted


class Column(Record, frozen=True):
    """One column of an upload, as the site has declared it."""

    name: str
    type: str


class Contents(Record, frozen=True):
    """What stands before the table inside the sealed bytes."""

    site: str
    study: str
    dataset: str  # its name at the site
    loading: str  # the loading plan that was applied, "" for none
    records: int
    columns: tuple[Column, ...]
    patient: str  # column of pseudonyms, "" for none
    single: bool  # every record is a patient of its own, as the site says
    folds: int  # that the last column tells apart; 0: there is no such column
    digest: str  # sha256:<hex> of the table's bytes


class Board(Record, frozen=True):
    """The statements of a site's partners, and the studies among theirs that are open."""

    statements: tuple[Sealed, ...] = ()
    open: tuple[str, ...] = ()  # digests


class Pieces(Record, frozen=True):
    """Which pieces of an upload the hub has."""

    have: tuple[int, ...] = ()


def read(sealed: Sealed, public_key: bytes) -> Statement:
    """Return a statement; AuthError unless `public_key` signed it, WireError if it is none."""
    return _decoded(open_sealed(sealed, CONTEXT, public_key))


def unverified(sealed: Sealed) -> Statement | None:
    """Return what a statement says, None where it says nothing readable; not to be believed."""
    try:
        return _decoded(sealed.payload)
    except WireError:
        return None


def newest(  # noqa: PLR0913, PLR0917 - whose word, on what
    found: Sequence[Sealed],
    keys: Mapping[str, bytes],
    site: str,
    kind: type[T],
    study: str,
    about: str = "",
) -> T | None:
    """Return the last statement of one kind by `site` on a study that its key has signed.

    `about` is the site whose upload it is, for what a data centre says of one.
    """
    last: T | None = None
    for sealed in found:
        if sealed.site != site or site not in keys:
            continue
        try:
            said = read(sealed, keys[site])
        except (AuthError, WireError):
            continue  # not theirs: as if it were not there
        of = said.site if isinstance(said, Held | Deleted) else ""
        if isinstance(said, kind) and (said.study, of) == (study, about):
            last = said
    return last


def pieces(size: int) -> int:
    """Return how many pieces an upload of `size` bytes has."""
    return -(-size // PIECE)


def _decoded(payload: bytes) -> Statement:
    try:
        said: Statement = msgspec.msgpack.decode(payload, type=Statement)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as e:
        raise WireError(f"not a valid statement about a pooled dataset: {e}") from None
    return said
