"""People with accounts at a site's console, made in the store of its node."""

from collections.abc import Sequence

from consilia.accounts import store as accounts
from consilia.node.store import Store
from consilia.wire.console import ROLES, Role


def employ(store: Store, *names: str, roles: Sequence[Role] = ROLES, now: float = 1.0) -> None:
    """Make an account of each name, with these roles; nobody can sign in to it."""
    for name in names:
        with store.write() as tx:
            _, token = accounts.invite(
                tx,
                roles=tuple(roles),
                actor="test",
                now=now,
                seconds=60.0,
                random=name.encode().ljust(32, b"\0"),
            )
            accounts.accept(tx, token, name, "no password", now)
