"""Whom a line to a directory trusts: the authorities that its settings name."""

import ssl
from pathlib import Path

from consilia.errors import ConfigError


def authority(directory: Path, ca: str, key: str) -> ssl.SSLContext:
    """Return a context that trusts the PEM file `ca`; "" for the system's authorities."""
    try:
        context = ssl.create_default_context(cafile=str(directory / ca) if ca else None)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"{key}: {directory / ca} cannot be used: {e}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
