"""The form of an update that the hub cannot read: masked, or encrypted."""

from consilia.core.weights import Schema
from consilia.privacy import encrypted, masked
from consilia.wire.v1 import Privacy


def schema(base: Schema, privacy: Privacy) -> Schema:
    """Return the schema of a hidden update of a model of schema `base`."""
    if privacy.aggregation == "ckks":
        return encrypted.schema(base)
    return masked.schema(base, privacy.bits)
