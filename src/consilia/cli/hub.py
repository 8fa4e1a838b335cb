"""`consilia hub`: what the consortium's operator does, on the hub's machine.

invite, revoke, sites and token speak to the running hub as the operator whose token lies in
the hub's directory; while the hub does not run they work on its database.
"""

from pathlib import Path
from typing import Annotated

import typer

from consilia.cli.options import HubDir, Json, example, group, hub_dir
from consilia.cli.output import done, listing, note, say, when
from consilia.errors import ConfigError

app = group("hub", "The hub: make one, serve, invite and revoke sites, give tokens to people.")
tokens = group("token", "API tokens of people and programs.")
app.add_typer(tokens)


@app.command(
    epilog=example(
        "consilia hub init /srv/hub --host hub.example.org",
        "consilia hub init hub --people 127.0.0.1:8443 --nodes 127.0.0.1:8444",
        "consilia hub init hub --database postgresql://hub@db.example.org/hub "
        "--database-password-file /etc/hub/db --bucket consilia-frames",
    )
)
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.")],
    name: Annotated[str, typer.Option(help="The hub's name in audit trails.")] = "hub",
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address others reach it by; may be given again."),
    ] = None,
    people: Annotated[
        str, typer.Option(help="host:port for people: REST and metrics.")
    ] = "127.0.0.1:8443",
    nodes: Annotated[str, typer.Option(help="host:port for nodes.")] = "0.0.0.0:8444",
    database: Annotated[
        str, typer.Option(help="sqlite, or postgresql://user@host:port/name.")
    ] = "sqlite",
    database_password_file: Annotated[
        Path | None, typer.Option(help="The database's password: a file of mode 600.")
    ] = None,
    bucket: Annotated[str, typer.Option(help="An S3 bucket that keeps the frames.")] = "",
    bucket_endpoint: Annotated[
        str,
        typer.Option(help="https://host:port of the bucket's service; without it Amazon's."),
    ] = "",
    bucket_region: Annotated[str, typer.Option(help="The bucket's region.")] = "",
    bucket_credentials_file: Annotated[
        Path | None, typer.Option(help="The bucket's key id and secret, two lines; mode 600.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a hub: its settings, its certificate authority, its keys, an operator's token."""
    from consilia.hub.atrest import init as init_hub
    from consilia.hub.config import S3, Directory, HubConfig

    if not bucket and (bucket_endpoint or bucket_region or bucket_credentials_file):
        raise ConfigError(
            "--bucket: found none, needed the bucket that the other options are of"
        )
    key = _file(bucket_credentials_file)
    s3 = S3(bucket, "", bucket_endpoint, bucket_region, key) if bucket else None

    config = HubConfig(
        name=name,
        people_listen=people,
        node_listen=nodes,
        hosts=tuple(host or ("localhost",)),
        database=database,
        database_password_file=_file(database_password_file),
        s3=s3,
    )
    where = directory.absolute()
    first = init_hub(where, config)
    layout = Directory(where)
    done(
        f"hub {name} is made in {where}\n"
        f"settings: {layout.config}\n"
        f"CA certificate, for people: {layout.secrets / 'ca.pem'}\n"
        f"operator's token, for this machine: {layout.operator_token}\n"
        f"the first operator's account, once, until {when(first.expires)}: {first.link}\n"
        f"next: consilia hub serve --dir {where}",
        {
            "directory": where,
            "ca": layout.secrets / "ca.pem",
            "config": config,
            "invitation": first,
        },
        as_json,
    )


@app.command(epilog=example("consilia hub serve --dir /srv/hub"))
def serve(directory: HubDir = None) -> None:
    """Run the hub until it is told to end."""
    from consilia.hub.app import serve as serve_hub

    serve_hub(hub_dir(directory))


@app.command("rotate-key", epilog=example("consilia hub rotate-key --dir /srv/hub"))
def rotate_key(directory: HubDir = None, as_json: Json = False) -> None:
    """Seal every frame of a stopped hub under a new key. Cut short, it is simply run again."""
    from consilia.hub.app import rotate_key as rotate

    count = rotate(hub_dir(directory))
    done(f"{count} frames sealed under a new key", {"sealed": count}, as_json)


@app.command(epilog=example("consilia hub invite north-hospital --dir /srv/hub > north.token"))
def invite(
    site: Annotated[str, typer.Argument(help="The site's name from now on.")],
    hours: Annotated[float, typer.Option(help="How long the token can be used.")] = 72.0,
    directory: HubDir = None,
    as_json: Json = False,
) -> None:
    """Print a one-time join token for a site. Hand it over as you would a password."""
    from consilia.cli.at_hub import operator

    with operator(hub_dir(directory)) as desk:
        view = desk.invite(site, hours)
    if as_json:
        done("", view, True)
        return
    say(view.token)
    note(f"for {site}, once, until {when(view.expires)}; CA fingerprint {view.ca_fingerprint}")


@app.command(epilog=example("consilia hub revoke north-hospital --dir /srv/hub"))
def revoke(
    site: Annotated[str, typer.Argument(help="The site's name.")],
    directory: HubDir = None,
    as_json: Json = False,
) -> None:
    """Shut a site out. Works on its next request; its open invitation ends as well."""
    from consilia.cli.at_hub import operator

    with operator(hub_dir(directory)) as desk:
        view = desk.revoke_site(site)
    done(f"site {site}: {view.state}", view, as_json)


@app.command(epilog=example("consilia hub sites --dir /srv/hub"))
def sites(directory: HubDir = None, as_json: Json = False) -> None:
    """List the sites: enrolled, online, certificate, datasets on offer."""
    from consilia.cli.at_hub import operator

    with operator(hub_dir(directory)) as desk:
        found = desk.sites()
    listing(
        found,
        {
            "site": lambda v: v.name,
            "state": lambda v: v.state,
            "online": lambda v: v.online,
            "last seen": lambda v: when(v.last_seen),
            "certificate until": lambda v: when(v.certificate_expires),
            "release": lambda v: v.version,
            "datasets": lambda v: v.datasets,
        },
        as_json,
        "no site has been invited; see: consilia hub invite --help",
    )


@tokens.command(
    epilog=example("consilia hub token create ada --role researcher --dir /srv/hub > ada.token")
)
def create(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    role: Annotated[
        str, typer.Option(help="operator, researcher, reviewer, downstream or auditor.")
    ],
    days: Annotated[int, typer.Option(help="How long it is valid.")] = 90,
    directory: HubDir = None,
    as_json: Json = False,
) -> None:
    """Print a new API token. It is shown once; the hub keeps only a hash of it."""
    from consilia.cli.at_hub import operator

    with operator(hub_dir(directory)) as desk:
        view = desk.new_token(name, role, days)
    if as_json:
        done("", view, True)
        return
    say(view.secret or "")
    note(f"token {view.id} of {view.name} ({view.role}), valid until {when(view.expires)}")


@tokens.command("list", epilog=example("consilia hub token list --dir /srv/hub"))
def list_(directory: HubDir = None, as_json: Json = False) -> None:
    """List API tokens, without their secrets."""
    from consilia.cli.at_hub import operator

    with operator(hub_dir(directory)) as desk:
        found = desk.tokens()
    listing(
        found,
        {
            "token": lambda v: v.id,
            "name": lambda v: v.name,
            "role": lambda v: v.role,
            "valid until": lambda v: when(v.expires),
        },
        as_json,
        "there is no token",
    )


@tokens.command("revoke", epilog=example("consilia hub token revoke tok-0123456789abcdef"))
def revoke_token(
    token: Annotated[str, typer.Argument(metavar="ID", help="The token's id.")],
    directory: HubDir = None,
    as_json: Json = False,
) -> None:
    """Revoke an API token; it fails from its next request on."""
    from consilia.cli.at_hub import operator

    with operator(hub_dir(directory)) as desk:
        desk.revoke_token(token)
    done(f"token {token} is revoked", {"revoked": token}, as_json)


def _file(path: Path | None) -> str:
    """Return where a file is, as hub.yaml keeps it; ConfigError when it is not there."""
    if path is None:
        return ""
    if not path.is_file():
        raise ConfigError(f"{path} is no file: needed one of mode 600 that holds the secret")
    return str(path.absolute())
