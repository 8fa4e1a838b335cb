"""What the sites of a study offer it, and invented records to develop a plan on:

    for offer in client.datasets.list("heart"):
        print(offer.site, offer.dataset.name, offer.dataset.records, offer.dataset.columns)
    paths = client.datasets.mock("heart", out="mock")       # mock/<site>-<dataset>.csv

A mock twin tells one column at a time how many records have which levels or lie in which bins,
where at least k patients do. Nothing in it is a record; columns are independent of each other.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from consilia.core import ids
from consilia.data import mock
from consilia.errors import NotFound
from consilia.wire.people import OfferView

if TYPE_CHECKING:
    from consilia.sdk.client import Client


class Datasets:
    """Datasets of the sites, as far as these tell."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def list(self, study: str, site: str | None = None) -> list[OfferView]:
        """Return what the sites that accepted a study offer it, or what one of them does."""
        offers = self._client.offers(study)
        return [offer for offer in offers if site in (None, offer.site)]

    def mock(
        self,
        study: str,
        site: str | None = None,
        *,
        out: str | Path = ".",
        rows: int | None = None,
        seed: int = 0,
    ) -> dict[str, Path]:
        """Write invented records of every dataset that has a mock twin, as CSV into `out`.

        Returns "site/dataset" -> file. `rows` is as many as the site says it has when None.
        Raises NotFound when no site of the study gives a mock twin.
        """
        folder = Path(out)
        found = [o for o in self.list(study, site) if o.dataset.mock is not None]
        if not found:
            where = f"site {site!r}" if site else "no site"
            raise NotFound(
                f"{where} of study {study!r} gives a mock twin; a site does by: "
                "consilia dataset mock NAME --allow"
            )
        folder.mkdir(parents=True, exist_ok=True)
        paths = {}
        for offer in found:
            where = ids.name(offer.site, "site")
            name, twin = ids.name(offer.dataset.name, "dataset"), offer.dataset.mock
            path = folder / f"{where}-{name}.csv"
            rng = np.random.default_rng([seed, *f"{where}/{name}".encode()])
            count = rows or max(offer.dataset.records, 1)
            if twin is not None:
                mock.write_csv(twin, path, min(count, mock.MAX_ROWS), rng)
            paths[f"{where}/{name}"] = path
        return paths
