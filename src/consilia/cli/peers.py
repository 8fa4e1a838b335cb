"""`consilia node peers` and `pin`: whose keys this site trusts in masked rounds."""

import time
from datetime import date
from typing import Annotated

import typer

from consilia.cli.at_node import changing, opened
from consilia.cli.options import Json, NodeDir, actor, example
from consilia.cli.output import done, listing

StudyName = Annotated[str, typer.Argument(help="The study's name or digest.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog=example("consilia node peers heart-failure"))(peers)
    app.command(epilog=example("consilia node pin heart-failure"))(pin)


def peers(name: StudyName, directory: NodeDir = None, as_json: Json = False) -> None:
    """List a study's sites and the words of their signing keys.

    Compare the words with each site by telephone: a hub that made sites up could learn yours.
    """
    from consilia.node import peers as here
    from consilia.node import studies

    with opened(directory) as store:
        found = studies.get(store, name, date.today())
        listing(
            here.of_study(store, found.digest, found.study.sites),
            {
                "site": lambda p: p.site,
                "key": lambda p: p.state,
                "pinned": lambda p: here.words(p.pinned) if p.pinned else "",
                "told by the hub": lambda p: here.words(p.told) if p.told else "",
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
        count = here.pin_again(store, found.digest, found.study.sites, actor(), time.time())
    done(f"pinned {count} keys for study {found.study.name}", {"pinned": count}, as_json)
