"""Routes of the node's health: what the doctor finds."""

from litestar import get

from consilia import __version__
from consilia.node import identity
from consilia.node.console.guard import anyone
from consilia.node.console.services import Here
from consilia.node.doctor import examine
from consilia.wire.console.site import HealthFinding, HealthView


@get("/health", opt=anyone(), sync_to_thread=True)
def get_health(here: Here) -> HealthView:
    """Check what the node needs, one thing after the other; takes up to ten seconds."""
    settings = here.config()
    me = identity.load(here.directory, settings.site)
    findings = examine(here.directory, here.now)
    return HealthView(
        settings.site,
        settings.hub,
        __version__,
        settings.sandbox,
        me.not_after,
        tuple(
            HealthFinding(f.check, f.ok, f.found, f.advice, f.keys, f.values) for f in findings
        ),
    )


ROUTES = (get_health,)
