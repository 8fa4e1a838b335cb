"""Datasets at a site, and the data loading plans they are read through."""

from consilia.wire.console import Request, View

# ---- datasets --------------------------------------------------------------------------------


class ColumnView(View, frozen=True):
    """One column of a dataset's schema."""

    name: str
    type: str  # float32 float64 int64 bool str category date timestamp
    unit: str = ""  # UCUM
    code_system: str = ""
    role: str = ""  # feature, target, patient, date, text, ignore
    missing: tuple[str, ...] = ()  # codes that mean no value
    description: str = ""
    unit_known: bool = True  # whether loading plans can convert the unit


class FolderView(View, frozen=True):
    """A folder within the data roots that the administrator configured."""

    path: str  # "" for the list of roots
    parent: str  # "" for none
    folders: tuple[str, ...]
    files: tuple["FileView", ...]
    truncated: bool = False
    tables: int = 0  # files that are tables: together they can be one dataset


class FileView(View, frozen=True):
    """A file that can be registered, or a database that can be asked."""

    name: str
    path: str
    bytes: int
    modified: float
    database: bool = False


class DatabaseView(View, frozen=True):
    """A database that the administrator has named in node.yaml; no secret is shown."""

    name: str
    kind: str  # duckdb, postgresql
    address: str


class DatabasesView(View, frozen=True):
    """The databases a data manager may ask."""

    databases: tuple[DatabaseView, ...]


class Query(Request, frozen=True):
    """A table as the answer of one SELECT."""

    database: str  # a name of console.databases, or the path of a DuckDB file in a data root
    select: str


class InspectPath(Request, frozen=True):
    """Look at a file, a folder or a query's answer before it is registered."""

    path: str = ""
    query: Query | None = None
    missing: tuple[str, ...] | None = None  # texts that mean no value; None: the usual ones


class InspectedView(View, frozen=True):
    """What was found in a table: the proposed schema."""

    path: str
    format: str
    records: int
    bytes: int
    digest: str
    columns: tuple[ColumnView, ...]


class ColumnChange(Request, frozen=True):
    """A column as the data manager declares it; what is None stays as it is found."""

    name: str
    type: str | None = None
    unit: str | None = None
    code_system: str | None = None
    role: str | None = None
    missing: tuple[str, ...] | None = None
    description: str | None = None


class NewDataset(Request, frozen=True):
    """Register a file, a folder of files, or the answer of a query: one of the two."""

    name: str
    tags: tuple[str, ...]
    path: str = ""
    query: Query | None = None
    description: str = ""
    missing: tuple[str, ...] | None = None
    patient: str = ""  # column of patient ids
    columns: tuple[ColumnChange, ...] = ()


class ChangeDataset(Request, frozen=True):
    """What is given changes; the rest stays."""

    tags: tuple[str, ...] | None = None
    description: str | None = None
    enabled: bool | None = None  # False stops its running tasks
    mock: bool | None = None  # whether the consortium may have a mock twin of it
    mock_loaded: bool | None = None  # whether also of what its loading plans make of it
    columns: tuple[ColumnChange, ...] = ()


class DatasetView(View, frozen=True):
    """One registered dataset."""

    name: str
    description: str
    tags: tuple[str, ...]
    enabled: bool
    records: int
    path: str
    format: str
    bytes: int
    digest: str
    created: float
    by: str
    patient: str
    columns: tuple[ColumnView, ...]
    problem: str = ""  # why tasks are refused: the file was changed, or is gone
    version: int = 0  # of its schema
    mock: bool = False  # whether the consortium may have a mock twin of it
    unfit: tuple[str, ...] = ()  # why its loading plan or the opt-out list does not apply yet
    source: str = ""  # of a query: which database was asked
    query: str = ""
    files: int = 1  # of a folder: how many
    mock_loaded: bool = False  # whether the twin is told as loading plans make the table, too


class DatasetsView(View, frozen=True):
    """All registered datasets."""

    datasets: tuple[DatasetView, ...]


class ProfileCell(View, frozen=True):
    """One bar of a histogram: a level, or the numbers from `low` to below `high`."""

    label: str  # of a level; "" of a bin
    low: float | None
    high: float | None
    records: int


class ProfileColumn(View, frozen=True):
    """What one column holds. Numbers of dates and times are days since 1970-01-01."""

    name: str
    type: str
    missing: int
    distinct: int
    least: float | None
    most: float | None
    mean: float | None
    sd: float | None
    quantiles: tuple[float, ...]  # 5, 25, 50, 75, 95 %; () where it has none
    cells: tuple[ProfileCell, ...]


class ProfileView(View, frozen=True):
    """What a dataset holds, for the site's own eyes: exact, small cells included."""

    records: int
    patients: int
    columns: tuple[ProfileColumn, ...]


class PreviewView(View, frozen=True):
    """The first rows of a table, as text; None for a missing value."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


class MockColumnView(View, frozen=True):
    """What a mock twin tells of one column: rounded counts, or nothing of its values."""

    name: str
    type: str
    unit: str
    role: str
    levels: dict[str, int]
    start: float
    width: float  # 0: no bins
    counts: tuple[int, ...]
    absent: int


class LoadedTwinView(View, frozen=True):
    """Whether the consortium is told what one loading plan makes of a dataset."""

    plan: str
    version: int
    study: str  # "": every study
    problem: str  # why it is not told, "" where it is


class MockView(View, frozen=True):
    """A dataset's mock twin: what would leave, and records invented from it."""

    offered: bool
    k: int  # no level and no end bin of fewer patients is told
    problem: str  # why it cannot be sent, "" when it can
    columns: tuple[MockColumnView, ...]
    invented: PreviewView
    as_loaded: bool = False  # whether it is told as loading plans make the table, too
    loaded: tuple[LoadedTwinView, ...] = ()


# ---- data loading plans ----------------------------------------------------------------------


class LoadingPlanView(View, frozen=True):
    """One data loading plan."""

    name: str
    version: int
    digest: str
    at: float
    by: str
    yaml: str
    attached: tuple["AttachmentView", ...] = ()


class AttachmentView(View, frozen=True):
    """Where a data loading plan holds. `study` is a name, "" for every study."""

    dataset: str
    study: str


class LoadingPlansView(View, frozen=True):
    """All data loading plans, in their newest version."""

    plans: tuple[LoadingPlanView, ...]


class SaveLoadingPlan(Request, frozen=True):
    """A data loading plan as YAML; saving it makes a new version."""

    yaml: str


class PreviewLoading(Request, frozen=True):
    """Try a data loading plan on a dataset; nothing is stored."""

    dataset: str
    yaml: str
    rows: int = 20


class AttachLoading(Request, frozen=True):
    """Attach a data loading plan to a dataset, for one study or for every one."""

    dataset: str
    study: str = ""


class CheckLoading(Request, frozen=True):
    """Check a draft of a data loading plan against a dataset's columns; reads no record."""

    yaml: str
    dataset: str = ""  # "": only what can be said without one


class StepColumn(View, frozen=True):
    """A column as a block finds it."""

    name: str
    type: str
    unit: str


class LoadingCheckView(View, frozen=True):
    """Which columns each block finds, and the first mistake with its place."""

    columns: tuple[tuple[StepColumn, ...], ...]  # before block 1, 2, ... and at the end
    problem: str = ""
    block: int = 0  # from 1; 0: the plan as a whole
    field: str = ""  # of the block; "": the block as a whole


class ColumnSummary(View, frozen=True):
    """A column in few numbers, for the site's own eyes; None where it has no such number."""

    name: str
    type: str
    missing: int
    distinct: int
    least: str | None
    greatest: str | None
    mean: float | None
    deviation: float | None


class LoadingPreviewView(View, frozen=True):
    """A table before and after a data loading plan."""

    before: PreviewView
    after: PreviewView
    records_before: int
    records_after: int
    summary_before: tuple[ColumnSummary, ...]
    summary_after: tuple[ColumnSummary, ...]


# ---- hard cases ------------------------------------------------------------------------------


class FindHardCases(Request, frozen=True):
    """Which records is a model most wrong about?"""

    model: str  # path of NAME.npz or a frame, within the data roots
    plan: str  # digest of an approved plan
    top: int = 20


class HardPartView(View, frozen=True):
    """One value of a record, and its share in the record's loss."""

    name: str
    value: float
    share: float


class HardCaseView(View, frozen=True):
    """One record: its row in the table as it is loaded, from 1, and what makes it hard."""

    row: int
    patient: str  # "" where the dataset declares no patient column
    loss: float
    target: tuple[float, ...]
    parts: tuple[HardPartView, ...]  # the largest shares, at most 8


class HardCasesView(View, frozen=True):
    """The hardest records, worst first, and the median loss of all."""

    records: int
    median: float
    cases: tuple[HardCaseView, ...]
    warnings: tuple[str, ...]  # such as that no sandbox held the plan
