"""`consilia study`: governed projects at the hub, from draft to close."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import structs

from consilia.cli.options import Json, example, group
from consilia.cli.output import done, listing, record, short
from consilia.wire.v1 import Study

if TYPE_CHECKING:
    from consilia.wire.people import DegreeView

Name = Annotated[str, typer.Argument(help="The study's name.")]

app = group("study", "Studies: what for, with whom, on which data.")


@app.command(
    epilog=example(
        "consilia study create heart-failure --purpose 'Predict readmission' \\",
        "    --site north --site south --tag heart-failure --ethics 'EC 2026-17'",
    )
)
def create(
    name: Name,
    purpose: Annotated[str, typer.Option(help="What the study is for; sites decide on it.")],
    site: Annotated[list[str], typer.Option(help="An invited site; may be given again.")],
    tag: Annotated[
        list[str], typer.Option(help="A tag its datasets must carry; may be given again.")
    ],
    controller: Annotated[str, typer.Option(help="Who answers for the data.")] = "",
    legal_basis: Annotated[str, typer.Option(help="Such as: GDPR Art. 9(2)(j).")] = "",
    ethics: Annotated[str, typer.Option(help="The ethics vote's reference.")] = "",
    until: Annotated[str, typer.Option(help="Last day, YYYY-MM-DD; without it, no end.")] = "",
    min_records: Annotated[
        int, typer.Option(help="Fewest records a site must have; can only raise its own rule.")
    ] = 0,
    retention_days: Annotated[
        int, typer.Option(help="Sites delete what it left so many days after its end; 0: free.")
    ] = 0,
    residency: Annotated[
        str, typer.Option(help="Region its sites must be in, such as EU; without it, any.")
    ] = "",
    data_centre: Annotated[
        str, typer.Option(help="Site that holds copies of what others pool; see: pool.")
    ] = "",
    pooled: Annotated[
        list[str] | None,
        typer.Option(help="A site that is asked to pool there; may be given again."),
    ] = None,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Ask for sums over records, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draft a study. Nobody sees it until it is submitted."""
    from consilia.sdk.client import Client

    study = Study(
        name=name,
        purpose=purpose,
        sites=tuple(sorted(site)),
        tags=tuple(sorted(tag)),
        controller=controller,
        legal_basis=legal_basis,
        ethics=ethics,
        until=until,
        min_records=min_records,
        retention_days=retention_days,
        residency=residency,
        data_centre=data_centre,
        pooled=tuple(sorted(pooled or ())),
        statistics=statistics,
    )
    with Client() as client:
        view = client.create_study(study)
    done(f"study {name}: {view.state}; next: consilia study submit {name}", view, as_json)


@app.command(epilog=example("consilia study submit heart-failure"))
def submit(name: Name, as_json: Json = False) -> None:
    """Lock a draft and offer it to its sites. See `revise` for terms that change later."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.submit_study(name)
    done(f"study {name}: {view.state}, digest {view.digest}", view, as_json)


@app.command(epilog=example("consilia study show heart-failure"))
def show(name: Name, as_json: Json = False) -> None:
    """Show a study and where it stands at each site."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.study(name)
    study = view.study
    record(
        view,
        {
            "study": study.name,
            "state": view.state,
            "digest": view.digest,
            "author": view.author,
            "purpose": study.purpose,
            "tags": study.tags,
            "controller": study.controller,
            "legal basis": study.legal_basis,
            "ethics": study.ethics,
            "until": study.until,
            "min records": study.min_records,
            "retention days": study.retention_days,
            "residency": study.residency,
            "statistics": "may be asked for" if study.statistics else "",
            **_degree(view.degree),
            "sites": "\n".join(f"{site}: {now}" for site, now in sorted(view.sites.items())),
        },
        as_json,
    )


def _degree(found: "DegreeView | None") -> dict[str, object]:
    """Return what `show` says of how federated a study is: of one with a data centre."""
    if found is None or not found.data_centre:
        return {}
    by_records = "unknown" if found.records is None else f"{found.records:.2f}"
    return {
        "data centre": found.data_centre,
        "degree of federation": f"{found.sites:.2f} by sites, {by_records} by records",
        "once all have pooled": f"{found.planned:.2f} by sites",
        "pooled": "\n".join(
            f"{p.site}: {p.state}" + (f", {p.records} records" if p.records else "")
            for p in found.pooled
        ),
    }


@app.command("list", epilog=example("consilia study list --json"))
def list_(as_json: Json = False) -> None:
    """List studies."""
    from consilia.sdk.client import Client

    with Client() as client:
        studies = client.studies()
    listing(
        studies,
        {
            "study": lambda v: v.study.name,
            "state": lambda v: v.state,
            "digest": lambda v: short(v.digest or ""),
            "author": lambda v: v.author,
            "accepted by": lambda v: [s for s, state in v.sites.items() if state == "accepted"],
            "sites": lambda v: v.study.sites,
        },
        as_json,
        "there is no study",
    )


@app.command(epilog=example("consilia study datasets heart-failure"))
def datasets(name: Name, as_json: Json = False) -> None:
    """List what the sites that accepted a study offer it."""
    from consilia.sdk.client import Client

    with Client() as client:
        offers = client.datasets.list(name)
    listing(
        offers,
        {
            "site": lambda o: o.site,
            "dataset": lambda o: o.dataset.name,
            "records": lambda o: o.dataset.records,
            "columns": lambda o: len(o.dataset.columns),
            "mock twin": lambda o: o.dataset.mock is not None,
        },
        as_json,
        f"no site that accepted study {name} offers a dataset with its tags",
    )


@app.command(
    epilog=example(
        "consilia study mock heart-failure --out mock",
        "consilia study mock heart-failure --site north --rows 500 --out mock",
    )
)
def mock(
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder for one CSV file a dataset.")],
    site: Annotated[str | None, typer.Option(help="Only this site's.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Records to invent; else as many as the site has.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed invents the same records.")] = 0,
    as_json: Json = False,
) -> None:
    """Write invented records with the columns of the sites' datasets, to develop a plan on."""
    from consilia.sdk.client import Client

    with Client() as client:
        paths = client.datasets.mock(name, site, out=out, rows=rows, seed=seed)
    done("\n".join(f"{what}: {path}" for what, path in paths.items()), paths, as_json)


@app.command(
    epilog=example(
        "consilia study revise heart-failure --until 2028-12-31 --ethics 'EC 2026-17, annex 2'"
    )
)
def revise(
    name: Name,
    purpose: Annotated[str | None, typer.Option(help="What the study is for.")] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="All invited sites, the new ones too.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="All tags its datasets must carry.")
    ] = None,
    controller: Annotated[str | None, typer.Option(help="Who answers for the data.")] = None,
    legal_basis: Annotated[str | None, typer.Option(help="Such as: GDPR Art. 9(2)(j).")] = None,
    ethics: Annotated[str | None, typer.Option(help="The ethics vote's reference.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day, YYYY-MM-DD; '': none.")] = None,
    min_records: Annotated[
        int | None, typer.Option(help="Fewest records a site must have.")
    ] = None,
    retention_days: Annotated[
        int | None, typer.Option(help="Days after its end until sites delete what it left.")
    ] = None,
    residency: Annotated[str | None, typer.Option(help="Region; '': any.")] = None,
    statistics: Annotated[
        bool | None, typer.Option("--statistics/--no-statistics", help="Ask for sums, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Offer a submitted study under changed terms. What is not given stays.

    Nothing runs until sites have accepted them: each sees what has changed, field by field.
    """
    from consilia.sdk.client import Client

    given: dict[str, Any] = {
        "purpose": purpose,
        "sites": tuple(sorted(site)) if site else None,
        "tags": tuple(sorted(tag)) if tag else None,
        "controller": controller,
        "legal_basis": legal_basis,
        "ethics": ethics,
        "until": until,
        "min_records": min_records,
        "retention_days": retention_days,
        "residency": residency,
        "statistics": statistics,
    }
    changed = {field: value for field, value in given.items() if value is not None}
    with Client() as client:
        study = structs.replace(client.study(name).study, **changed)
        view = client.revise_study(study)
    done(f"study {name}: offered anew, digest {view.digest}", view, as_json)


@app.command(epilog=example("consilia study close heart-failure"))
def close(name: Name, as_json: Json = False) -> None:
    """End a study: no job starts in it any more."""
    from consilia.sdk.client import Client

    with Client() as client:
        view = client.close_study(name)
    done(f"study {name}: {view.state}", view, as_json)
