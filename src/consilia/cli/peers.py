"""`consilia node peers` and `pin`: whose keys this site trusts in masked rounds."""

import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example, node_dir
from consilia.cli.output import done, listing

if TYPE_CHECKING:
    from consilia.node.peers import Peer

StudyName = Annotated[str, typer.Argument(help="The study's name or digest.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog=example("consilia node peers heart-failure"))(peers)
    app.command(epilog=example("consilia node pin heart-failure"))(pin)


def peers(name: StudyName, directory: NodeDir = None, as_json: Json = False) -> None:
    """List a study's sites and the words of their signing keys.

    Compare the words with each site by telephone: a hub that made sites up could learn yours.
    Read out those in the line of this site, which come from its own key.
    """
    from consilia.node import peers as here
    from consilia.node import studies

    with opened(directory) as store:
        found = studies.get(store, name, date.today())
        sites = here.of_study(store, found.digest, found.study.sites, _own(directory))
        listing(
            [_shown(peer) for peer in sites],
            {
                "site": lambda p: p["site"],
                "key": lambda p: p["key"],
                "pinned": lambda p: p["pinned"],
                "told by the hub": lambda p: p["told"],
            },
            as_json,
            "this study invites no site",
        )


def pin(name: StudyName, directory: NodeDir = None, as_json: Json = False) -> None:
    """Trust the keys that the hub tells now for a study's sites. Compare their words first."""
    from consilia.node import peers as here
    from consilia.node import studies

    with changing(directory) as store:
        found = studies.get(store, name, date.today())
        count = here.pin_again(
            store, found.digest, found.study.sites, actor(), time.time(), _own(directory)
        )
    done(f"pinned {count} keys for study {found.study.name}", {"pinned": count}, as_json)


def _own(directory: Path | None) -> "Peer":
    """Return this site with its own key, which no hub has to tell it."""
    from consilia.node import config, identity
    from consilia.node.peers import Peer

    here = node_dir(directory)
    site = config.load(here).site
    key = identity.load(here, site).signing.public_key().public_bytes_raw()
    return Peer(site, key, None)


def _shown(peer: "Peer") -> dict[str, str]:
    """Return what people see of a site: its keys as words."""
    from consilia.node.peers import words

    return {
        "site": peer.site,
        "key": peer.state,
        "pinned": words(peer.pinned) if peer.pinned else "",
        "told": words(peer.told) if peer.told else "",
    }
