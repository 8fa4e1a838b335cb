"""Routes of mock twins: what of a dataset the consortium would get, before anybody gets it."""

import numpy as np
from litestar import get
from litestar.params import FromPath, FromQuery

from consilia.core.weights import Array
from consilia.data import mock
from consilia.errors import ConfigError, NotFound, Wrong
from consilia.node import datasets, loadedtwins
from consilia.node.console.guard import allow
from consilia.node.console.services import Here
from consilia.node.twin import too_large
from consilia.wire.console.datasets import LoadedTwinView, MockColumnView, MockView, PreviewView
from consilia.wire.v1 import MockColumn, MockTwin

MOST = 100  # invented records shown
SEED = 1  # the same twin shows the same records


@get(
    "/datasets/{name:str}/mock",
    opt=allow("data_manager", "reviewer", "dpo"),
    sync_to_thread=True,
)
def get_mock(here: Here, name: FromPath[str], rows: FromQuery[int] = 8) -> MockView:
    """Return a dataset's mock twin, offered or not, and records invented from it."""
    if not 1 <= rows <= MOST:
        raise ConfigError(Wrong("rows", f"{rows}", f"1 to {MOST}"))
    dataset = datasets.get(here.store, name).dataset
    kept = datasets.twin(here.store, name)
    if kept is None:
        raise NotFound(
            f"dataset {name!r} was not measured since its file changed; look at the file again"
        )
    return MockView(
        dataset.mock,
        kept.k,
        too_large(kept.twin),
        tuple(_column(c) for c in kept.twin.columns),
        invented(kept.twin, rows),
        dataset.mock_loaded,
        tuple(
            LoadedTwinView(s.attached.plan, s.attached.version, s.attached.study, s.problem)
            for s in loadedtwins.shown(here.store, name)
        ),
    )


def invented(twin: MockTwin, rows: int) -> PreviewView:
    """Return records drawn from a twin, as texts; None where one has no value."""
    found = mock.table(twin, rows, np.random.default_rng(SEED))
    columns = [_texts(values) for values in found.values()]
    return PreviewView(tuple(found), tuple(zip(*columns, strict=True)))


def _texts(values: Array) -> list[str | None]:
    masked = np.ma.getmaskarray(values)
    plain = np.ma.getdata(values).tolist()
    gone = (None, "nan", "NaT")
    return [
        None if out or value is None or str(value) in gone else _shown(value)
        for value, out in zip(plain, masked, strict=True)
    ]


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _column(c: MockColumn) -> MockColumnView:
    return MockColumnView(**{n: getattr(c, n) for n in MockColumnView.__struct_fields__})


ROUTES = (get_mock,)
