"""Print the records of the hub's OpenAPI document, for `npm run client:hub`.

The truth is the routes of consilia.hub.rest. Which routes there are, and that the client asks
for no other, is a test's business; the pages need the records alone. Views are sent whole, so
their fields are all required, whatever their defaults; requests may leave out what has one.
"""

import json
import sys

import msgspec

from consilia.hub.rest.api import PLAIN_ROUTES, PREFIX, ROUTES
from consilia.web.openapi import document
from consilia.wire.people import View


def described() -> dict[str, object]:
    """Return the document's records, every field of an answer being required."""
    routes = [(PREFIX + path, route) for route in ROUTES for path in route.paths]
    routes += [(path, route) for route in PLAIN_ROUTES for path in route.paths]
    found = document(routes)
    schemas = found["components"]["schemas"]
    for name, kind in views(View).items():
        if name in schemas:
            schemas[name]["required"] = list(kind.__struct_encode_fields__)
    for name, schema in schemas.items():
        if name.startswith("Page_"):
            schema["required"] = ["items", "next"]
    return found | {"paths": {}}


def views(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """Return every record below `kind`, by name."""
    below = {sub.__name__: sub for sub in kind.__subclasses__()}
    return below | {n: k for sub in below.values() for n, k in views(sub).items()}


if __name__ == "__main__":
    json.dump(described(), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
