"""Offers that no honest hub makes: each stands in the audit trail once, however often it comes.

A hub could otherwise fill the site's disk with lines by offering the same forgery with every
catalogue, or a new one each time. So a line is written once for each offer and reason in 30
days, and for at most MOST of them on one day; the last says that there were more.
"""

import hashlib
from datetime import date, timedelta

from consilia.node.store import Store, printable

MOST = 100  # lines on one day
DAYS = 30  # that an attempt is remembered


def note(store: Store, action: str, subject: str, reason: str, now: float) -> bool:
    """Enter an attempt of the hub's in the audit trail; return whether it was a new one."""
    key = hashlib.sha256(f"{action}\0{subject}\0{reason}".encode("utf-8", "replace"))
    today = date.fromtimestamp(now)
    with store.write() as tx:
        last = tx.rows("SELECT action, subject FROM audit ORDER BY seq DESC LIMIT 1")
        if last == [(action, printable(subject, 400))]:
            return False  # whoever refused it has said so
        tx.execute("DELETE FROM attempts WHERE day < ?", (str(today - timedelta(days=DAYS)),))
        ((count,),) = tx.rows("SELECT count(*) FROM attempts WHERE day = ?", (str(today),))
        if int(count) >= MOST or not tx.execute(
            "INSERT OR IGNORE INTO attempts VALUES (?, ?)", (key.hexdigest(), str(today))
        ):
            return False
        more = "; further attempts of this day are not listed" if count == MOST - 1 else ""
        tx.audit(now, "hub", action, subject, "refused", reason + more)
    return True
