"""A reviewer's word for a training plan, signed by the reviewer's site, for other sites.

It travels as one line of text, by mail or any other road: what counts is the signature.

    consilia-review-1:<base64url of the sealed envelope>
"""

import base64
import binascii

import msgspec

from consilia.errors import WireError
from consilia.wire.v1 import Record, Sealed, decode

CONTEXT = "plan-review"
PREFIX = "consilia-review-1:"
MAX_TEXT = 16 << 10  # characters of a line


class PlanReview(Record, frozen=True):
    """Payload of a sealed "plan-review": this person read the plan and approves of it."""

    plan: str  # digest
    reviewer: str
    day: str  # ISO date at the reviewer's site
    reason: str = ""


def to_text(sealed: Sealed) -> str:
    """Return a signed review as one line."""
    return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(sealed)).decode()


def from_text(text: str) -> Sealed:
    """Return the envelope in a line, not yet verified; raise WireError for anything else."""
    line = text.strip()
    if not line.startswith(PREFIX) or len(line) > MAX_TEXT:
        raise WireError(
            f"{line[:40]!r} is no review of a plan: needed one line that begins with {PREFIX}, "
            "as consilia node endorse prints it"
        )
    try:
        body = base64.b64decode(line.removeprefix(PREFIX), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise WireError("the review of a plan is cut off or changed: not base64") from None
    return decode(body, Sealed)
