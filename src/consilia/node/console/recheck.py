"""Is who is signed in still known to the hospital's directory, and with which groups?

Asked again every `recheck_minutes`, by the next request of the person. Whom the directory no
longer knows loses every session at once. Where it is silent, people go on for as long again,
and then wait until it answers.
"""

from consilia.accounts import links
from consilia.accounts import store as accounts
from consilia.accounts.directory import Person, Turned
from consilia.accounts.links import Link
from consilia.accounts.store import Session
from consilia.errors import AuthError, TransferError
from consilia.node import seconding
from consilia.node.console.outside import SILENCE
from consilia.node.console.services import Services

_ANEW = "the hospital's directory is asked anew from time to time; sign in again"


def recheck(here: Services, found: Session) -> None:
    """Raise AuthError when a session may not go on; nothing for accounts made here. Blocks."""
    if found.account.password != links.NO_PASSWORD:
        return
    link = links.find(here.store, found.account.name)
    if link is None or not _due(here, link):
        return _known(link)
    with here.outside.lock_of(found.account.name):
        link = links.find(here.store, found.account.name)
        if link is None or not _due(here, link):  # another request has just asked
            return _known(link)
        now = here.now()
        if now < here.outside.silent_until:
            return _silence(here, link, "it did not answer a moment ago")
        try:
            verdict = _asked(here, found, link)
        except TransferError as e:
            here.outside.silent_until = now + SILENCE
            here.log.info("the directory is silent", cause=str(e))
            return _silence(here, link, str(e))
        except AuthError as e:
            verdict = Turned("failed", str(e))
        if verdict is None:
            with here.store.write() as tx:
                accounts.close_session(tx, found)
            raise AuthError(_ANEW)
        return _decide(here, link, verdict)


def _known(link: Link | None) -> None:
    if link is None:
        raise AuthError("this account is no longer here; sign in again")


def _due(here: Services, link: Link) -> bool:
    return not 0 <= here.now() - link.checked < 60.0 * here.outside.settings.recheck_minutes


def _asked(here: Services, found: Session, link: Link) -> Person | Turned | None:
    """Ask the directory; None where it cannot be asked about this session's person."""
    outside = here.outside
    if link.kind == "ldap" and outside.ldap is not None and outside.ldap.asks_later:
        return outside.ldap.again(link.account)
    refresh = outside.tokens.get(found.digest, "") if link.kind == "oidc" else ""
    if not refresh or outside.oidc is None:
        return None
    again = outside.oidc.again(refresh, link.subject)
    if isinstance(again, Turned):
        return again
    outside.keep(found.digest, again.refresh)
    return again.person


def _decide(here: Services, link: Link, verdict: Person | Turned) -> None:
    now, name = here.now(), link.account
    if isinstance(verdict, Person) and verdict.subject != link.subject:
        verdict = Turned("failed", f"{name}: somebody else has this name in the directory now")
    with here.store.write() as tx:
        known = accounts.get(tx, name)
        if isinstance(verdict, Person):
            links.checked(tx, name, now)
            if links.with_roles(tx, known, verdict.roles).epoch == known.epoch:
                return
            told = f"roles are {', '.join(verdict.roles)} now"
            tx.audit(
                now, "console", "account.change", name, "changed", f"by {link.kind}; {told}"
            )
        else:
            accounts.end_sessions(tx, name)
            seconding.forget(tx, name, now=now)
            told = "no longer let in"
            detail = f"{link.kind}: {verdict.detail}"
            tx.audit(now, "console", "account.end", name, "ended", detail)
    raise AuthError(f"the hospital's directory was asked anew: {told}; sign in again")


def _silence(here: Services, link: Link, cause: str) -> None:
    patience = 120.0 * here.outside.settings.recheck_minutes
    if not 0 <= here.now() - link.checked < patience:
        raise AuthError(f"the hospital's directory cannot be asked about you now: {cause}")
