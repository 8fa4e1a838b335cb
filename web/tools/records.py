"""Print the console's records as an OpenAPI document, for `npm run client`.

The truth is consilia.wire.console. Views are sent whole, so their fields are all required,
whatever their defaults; requests may leave out what has a default.
"""

import inspect
import json
import sys

import msgspec

from consilia.wire.console import (
    Request,
    View,
    accounts,
    datasets,
    harmony,
    patients,
    pooling,
    runs,
    site,
    studies,
)


def document() -> dict[str, object]:
    """Return the OpenAPI document whose components are the records of wire.console."""
    records = [
        kind
        for area in (accounts, datasets, harmony, patients, pooling, runs, site, studies)
        for _, kind in inspect.getmembers(area, inspect.isclass)
        if issubclass(kind, Request | View) and kind.__struct_fields__
    ]
    _, components = msgspec.json.schema_components(
        records, ref_template="#/components/schemas/{name}"
    )
    for kind in records:
        if issubclass(kind, View):
            components[kind.__name__]["required"] = list(kind.__struct_encode_fields__)
    return {
        "openapi": "3.1.0",
        "info": {"title": "The node's console", "version": "1"},
        "paths": {},
        "components": {"schemas": dict(sorted(components.items()))},
    }


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
