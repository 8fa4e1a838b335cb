"""Where a person's hub is and who they are there, kept between commands."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from consilia.errors import ConfigError


class Profile(msgspec.Struct, frozen=True):
    """Where a person's hub is and who they are there; `ca` is PEM text.

    `token` is an API key, or with `refresh` the access token of a session.
    """

    url: str
    token: str
    ca: str
    refresh: str = ""  # the refresh token, good for one use; "": `token` is an API key
    expires: float = 0.0  # Unix seconds, of the access token
    name: str = ""  # of the account


def profile_path(environ: Mapping[str, str]) -> Path:
    """Return where `consilia login` keeps the profile (XDG base directories)."""
    base = (
        environ.get("XDG_CONFIG_HOME")
        or Path(environ.get("HOME", "~")).expanduser() / ".config"
    )
    return Path(base) / "consilia" / "profile.json"


def save_profile(profile: Profile, path: Path) -> None:
    """Write the profile so that only its owner can read it; replaces an older one whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(msgspec.json.encode(profile))
    part.replace(path)


def load_profile(path: Path) -> Profile | None:
    """Read the profile; None when there is none; ConfigError when it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as e:
        raise ConfigError(
            f"{path} cannot be read ({e}); write it anew: consilia login"
        ) from None
