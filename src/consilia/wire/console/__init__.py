"""What the node's console and a browser tell each other. JSON at `/api`, inside the hospital.

Nothing here leaves the site. Times are Unix seconds, days ISO dates ("" for none), digests
`sha256:<hex>`; lists are tuples. Requests refuse unknown keys (wire.strict), views may grow.
The records lie by area, one module each.
"""

from typing import Literal

import msgspec

Role = Literal["data_manager", "reviewer", "dpo", "administrator"]
ROLES: tuple[Role, ...] = ("data_manager", "reviewer", "dpo", "administrator")


class Request(msgspec.Struct, frozen=True):
    """A JSON body that a browser sends."""


class View(msgspec.Struct, frozen=True):
    """A JSON answer."""
