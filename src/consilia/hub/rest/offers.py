"""The route of what the sites of a study offer it: datasets, columns, mock twins."""

from litestar import get
from litestar.params import FromPath
from sqlalchemy import Connection

from consilia.hub.rest.governance import seen_study
from consilia.hub.rest.guard import Who
from consilia.hub.rest.services import Hub
from consilia.hub.rest.views import may_see_all, said_by_all
from consilia.wire.offers import for_study
from consilia.wire.people import OfferView


@get("/studies/{name:str}/datasets")
async def list_offers(hub: Hub, who: Who, name: FromPath[str]) -> list[OfferView]:
    """List the datasets with the study's tags at the sites that have accepted it."""

    def read(db: Connection) -> list[OfferView]:
        record, said = seen_study(db, who, name), said_by_all(db)
        wanted = set(record.study.tags)
        mine = may_see_all(who, record)
        return [
            OfferView(site=site, dataset=for_study(dataset, record.study.name))
            for site in sorted(record.study.sites)
            if (mine or site == who.site)
            and site in said
            and record.digest in said[site].studies
            for dataset in said[site].datasets
            if wanted <= set(dataset.tags)
        ]

    return await hub.store.read(read)
