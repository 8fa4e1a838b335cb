"""A person's session between commands: the access token at hand, and the next one in time.

A refresh token is good for one use, so programs that run at once take turns: each holds the
lock beside the profile while it asks, and first looks whether another has asked already.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from consilia.errors import AuthError
from consilia.sdk.api import Api
from consilia.sdk.profile import Profile, load_profile, save_profile
from consilia.wire.accounts import Login, Refresh, SignedIn

EARLY = 60.0  # seconds before its end that an access token is given up


class ProfileSession:
    """Gives the access token of a saved profile."""

    def __init__(
        self, profile: Profile, path: Path, timeout: float, now: Callable[[], float]
    ) -> None:
        """`now` is in Unix seconds, `timeout` in seconds."""
        self._profile = profile
        self._path = path
        self._timeout = timeout
        self._now = now

    def token(self) -> str:
        """Return an access token that is good for a while; AuthError when none can be had."""
        if not self._due(self._profile):
            return self._profile.token
        with _locked(self._path):
            saved = load_profile(self._path)
            if saved is None or not saved.refresh:
                raise AuthError("you are signed out; sign in again: consilia login")
            if self._due(saved):
                saved = self._renewed(saved)
            self._profile = saved
        return self._profile.token

    def _due(self, profile: Profile) -> bool:
        return self._now() >= profile.expires - EARLY

    def _renewed(self, saved: Profile) -> Profile:
        api = Api(saved.url, "", saved.ca, self._timeout, _no_sleep)
        try:
            got = api.post("/auth/refresh", SignedIn, Refresh(saved.refresh))
        except AuthError as e:
            raise AuthError(
                f"{saved.name or 'your'} session at {saved.url} has ended; sign in again: "
                "consilia login"
            ) from e
        finally:
            api.close()
        return kept(saved, got, self._path, self._now())


def sign_in(profile: Profile, said: Login, timeout: float) -> SignedIn:
    """Return the tokens for a name and a password; see errors of `POST /auth/login`."""
    api = Api(profile.url, "", profile.ca, timeout, _no_sleep)
    try:
        return api.post("/auth/login", SignedIn, said)
    finally:
        api.close()


def sign_out(profile: Profile, timeout: float) -> None:
    """End the session of a profile at its hub."""
    api = Api(profile.url, "", profile.ca, timeout, _no_sleep)
    try:
        api.send("POST", "/auth/logout", Refresh(profile.refresh))
    finally:
        api.close()


def kept(profile: Profile, got: SignedIn, path: Path, now: float) -> Profile:
    """Save new tokens, readable to their owner alone, and return the profile."""
    fresh = msgspec.structs.replace(
        profile,
        token=got.access_token,
        refresh=got.refresh_token or "",
        expires=now + got.expires_in,
    )
    save_profile(fresh, path)
    return fresh


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock beside the profile."""
    fd = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _no_sleep(_: float) -> None:
    """Do not wait: what is sent here is never repeated."""
