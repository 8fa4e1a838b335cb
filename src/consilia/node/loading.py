"""The site's data loading plans: kept in versions, attached to datasets, measured before use.

A plan is stored under its name; every change makes a version, and none is ever changed. One
version is attached to a dataset for one study, or for every study. Attaching checks it against
the columns and runs it once over the records (`measure`), so that what the site's policy judges
by, above all how many records are left, is measured by the site and not said by a worker.

What was measured holds for one file, one plan and one opt-out list. When any of them has
changed, tasks are refused until `refresh` has measured anew; the commands that change one do
so themselves. The agent only looks up: it never opens a table.
"""

import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from consilia.data.loading import blocks, stages, table
from consilia.data.loading import preview as seen
from consilia.data.loading.blocks import LoadingPlan
from consilia.data.registry import Dataset, to_source
from consilia.data.table import Table
from consilia.errors import Conflict, ConsiliaError, NotFound
from consilia.node import datasets, holdout, optout
from consilia.node.optout import Patients
from consilia.node.policy import DatasetFacts
from consilia.node.store import Row, Store, Transaction

ANY = ""  # the study of an attachment that holds for all of them
_HELD = "/holdout"  # after a source: what was measured of its hold-out
_FOLD = "/fold/"  # after a source, with a number: what was measured without that fold


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of a plan."""

    plan: LoadingPlan
    version: int  # from 1
    digest: str
    at: float  # Unix seconds
    actor: str


@dataclass(frozen=True, slots=True)
class Attached:
    """Which plan loads a dataset for a study."""

    dataset: str
    study: str  # "" for every study that has no attachment of its own
    plan: str
    version: int
    digest: str
    actor: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured of a dataset as it is loaded."""

    records: int
    columns: Mapping[str, str]
    rows: bytes = b""  # records left out, as data.loading.table packs them
    patients: Patients = frozenset()  # hashes of the patients left out
    held: bytes = b""  # records left out for the hold-out; b"" when there is none
    held_records: int = 0
    folds: tuple["Facts", ...] = ()  # with each fold as the hold-out; not read back whole


@dataclass(frozen=True, slots=True)
class Prepared:
    """A dataset as a task of a study gets it, or why it gets none."""

    dataset: Dataset
    plan: str = ""  # name and version, for the audit trail
    digest: str = ""  # of the plan
    patients: Patients = frozenset()
    problem: str = ""

    @property
    def note(self) -> str:
        """What the audit trail says of it, "" when the table is loaded as it is."""
        parts = [f"loading plan {self.plan} {self.digest}"] if self.digest else []
        if self.patients:
            parts.append(f"{len(self.patients)} patients opted out")
        return ", ".join(parts)


# ---- plans and versions ------------------------------------------------------------------


def create(store: Store, plan: LoadingPlan, *, actor: str, now: float) -> Stored:
    """Store a new plan; Conflict when there is one of this name."""
    with store.write() as tx:
        if _newest(tx, plan.name):
            raise Conflict(
                f"there is a loading plan {plan.name!r} already; change it with "
                "`consilia loading edit`, or give the file another name"
            )
        return _insert(tx, plan, 1, actor, now)


def edit(store: Store, plan: LoadingPlan, *, actor: str, now: float) -> Stored:
    """Store the next version of a plan; Conflict when it says what the newest one says."""
    with store.write() as tx:
        newest = _newest(tx, plan.name)
        if newest is None:
            raise NotFound(_unknown(plan.name))
        if newest.plan == plan:
            raise Conflict(f"version {newest.version} of {plan.name!r} says this already")
        return _insert(tx, plan, newest.version + 1, actor, now)


def get(store: Store, name: str, version: int = 0) -> Stored:
    """Return a version of a plan, the newest for 0; NotFound when there is none."""
    found = versions(store, name)
    if version == 0:
        return found[-1]
    for stored in found:
        if stored.version == version:
            return stored
    raise NotFound(f"loading plan {name!r} has versions 1 to {len(found)}, not {version}")


def versions(store: Store, name: str) -> list[Stored]:
    """Return all versions of a plan, oldest first; NotFound when there is none."""
    rows = store.rows(
        "SELECT body, version, digest, at, actor FROM loading_plans WHERE name = ? "
        "ORDER BY version",
        (name,),
    )
    if not rows:
        raise NotFound(_unknown(name))
    return [_stored(row) for row in rows]


def list_plans(store: Store) -> list[Stored]:
    """Return the newest version of every plan, by name."""
    rows = store.rows("SELECT DISTINCT name FROM loading_plans ORDER BY name")
    return [get(store, str(name)) for (name,) in rows]


def difference(old: Stored, new: Stored) -> str:
    """Return a unified diff of two versions as YAML, "" when they say the same."""
    before, after = (blocks.to_yaml(s.plan).splitlines() for s in (old, new))
    was, is_now = (f"{s.plan.name} version {s.version}" for s in (old, new))
    return "\n".join(difflib.unified_diff(before, after, was, is_now, lineterm=""))


# ---- where plans are attached ------------------------------------------------------------


def attach(  # noqa: PLR0913 - by keyword
    store: Store, name: str, dataset: str, *, actor: str, now: float, study: str = ANY,
    version: int = 0,
) -> tuple[Attached, Facts]:  # fmt: skip
    """Let a plan load a dataset, for one study or for all; measured first, in full.

    Raises ConfigError or DataError when the plan does not fit, naming block and value.
    """
    stored, known = get(store, name, version), datasets.get(store, dataset).dataset
    source, facts = _measured(store, known, stored)
    found = Attached(dataset, study, name, stored.version, stored.digest, actor)
    with store.write() as tx:
        tx.execute(
            "INSERT INTO loading_attached VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (dataset, study) DO UPDATE SET plan = excluded.plan, "
            "version = excluded.version, at = excluded.at, "
            "actor = excluded.actor",
            (dataset, study, name, stored.version, now, actor),
        )
        _keep(tx, dataset, source, facts)
        tx.touch()
        detail = (
            f"plan {name} version {stored.version} {stored.digest}, study {study or 'any'}, "
            f"{facts.records} records left"
        )
        tx.audit(now, actor, "loading.attach", dataset, "attached", detail)
    return found, facts


def accept(  # noqa: PLR0913 - by keyword
    store: Store,
    plan: LoadingPlan,
    dataset: str,
    *,
    actor: str,
    now: float,
    study: str = ANY,
) -> tuple[Attached, Facts]:
    """Store a proposed plan, or its next version, and attach it: all of it, or nothing."""
    known = datasets.get(store, dataset).dataset
    _measured(store, known, Stored(plan, 0, blocks.plan_digest(plan), now, actor))
    try:
        newest = get(store, plan.name)
    except NotFound:
        create(store, plan, actor=actor, now=now)
    else:
        if newest.plan != plan:
            edit(store, plan, actor=actor, now=now)
    return attach(store, plan.name, dataset, actor=actor, now=now, study=study)


def detach(store: Store, dataset: str, *, actor: str, now: float, study: str = ANY) -> None:
    """Load a dataset as it is again; NotFound when no plan is attached."""
    with store.write() as tx:
        gone = tx.execute(
            "DELETE FROM loading_attached WHERE dataset = ? AND study = ?", (dataset, study)
        )
        if not gone:
            where = f"for study {study!r}" if study else "for every study"
            raise NotFound(f"no loading plan is attached to {dataset[:80]!r} {where}")
        tx.touch()
        tx.audit(now, actor, "loading.detach", dataset, "detached", f"study {study or 'any'}")


def attachments(store: Store) -> list[Attached]:
    """Return what is attached, by dataset and study."""
    rows = store.rows(
        "SELECT a.dataset, a.study, a.plan, a.version, p.digest, a.actor "
        "FROM loading_attached a JOIN loading_plans p "
        "ON p.name = a.plan AND p.version = a.version ORDER BY a.dataset, a.study"
    )
    return [
        Attached(str(d), str(s), str(p), int(v), str(g), str(a)) for d, s, p, v, g, a in rows
    ]


def attached_to(store: Store, dataset: str, studies: Iterable[str]) -> Stored | None:
    """Return what loads a dataset for the first of `studies` with its own plan, or for any."""
    here = {a.study: a for a in attachments(store) if a.dataset == dataset}
    found = next((here[study] for study in (*studies, ANY) if study in here), None)
    return get(store, found.plan, found.version) if found else None


def as_loaded(dataset: Dataset, plan: LoadingPlan) -> Dataset:
    """Return `dataset` with `plan` applied, its records counted; DataError where it misfits."""
    compiled(dataset, plan)
    ready = replace(dataset, loading=blocks.to_bytes(plan), records=0)
    return replace(ready, records=Table(to_source(ready), 2).check())


# ---- what a task gets --------------------------------------------------------------------


@dataclass(slots=True)
class Loading:
    """The plans and the opt-out list in force, as of one revision of the store."""

    store: Store
    _list: str | None = None
    _attached: dict[tuple[str, str], Attached] | None = None
    _prepared: dict[tuple[str, str, int], Prepared] = field(default_factory=dict)

    def prepared(self, dataset: Dataset, study: str, fold: int = 0) -> Prepared:
        """Return `dataset` as a task of `study` gets it. Looks up, and measures nothing.

        `fold` is the one kept from training, 0 for none.
        """
        key = (dataset.name, study, fold)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(dataset, study, fold)
        return self._prepared[key]

    def facts(
        self,
        known: Sequence[DatasetFacts],
        by_name: Mapping[str, Dataset],
        study: str,
        fold: int = 0,
    ) -> tuple[DatasetFacts, ...]:
        """Return what policy judges by, with the records that are left for `study`."""
        return tuple(
            f
            if f.name not in by_name
            else _left(f, self.prepared(by_name[f.name], study, fold))
            for f in known
        )

    def _prepare(self, dataset: Dataset, study: str, fold: int) -> Prepared:
        there = dataset.holdout.folds if dataset.holdout else 0
        if fold and not 1 <= fold <= there:
            return Prepared(
                dataset,
                problem=f"the task names fold {fold}, dataset {dataset.name!r} declares "
                f"{there or 'none'}: consilia dataset holdout {dataset.name} --folds",
            )
        if self._attached is None:
            self._attached = {(a.dataset, a.study): a for a in attachments(self.store)}
        if self._list is None:
            self._list = optout.state(self.store)
        attached = self._attached.get((dataset.name, study)) or self._attached.get(
            (dataset.name, ANY)
        )
        listed = self._list and dataset.patient
        if attached is None and not listed and dataset.holdout is None:
            return Prepared(dataset)
        stored = get(self.store, attached.plan, attached.version) if attached else None
        source = source_of(dataset, stored, self._list)
        facts = _known(self.store, dataset, source, fold)
        name = f"{attached.plan} version {attached.version}" if attached else ""
        digest = stored.digest if stored else ""
        if facts is None:
            problem = (
                f"dataset {dataset.name!r} was changed after its loading plan, its hold-out or "
                "the opt-out list was last applied to it: consilia loading refresh"
            )
            return Prepared(dataset, name, digest, problem=problem)
        ready = replace(
            dataset,
            records=facts.records,
            loading=blocks.to_bytes(stored.plan) if stored else b"",
            without=facts.rows,
            held=facts.held,
            held_records=facts.held_records,
        )
        return Prepared(ready, name, digest, facts.patients)


def refresh(store: Store) -> list[str]:
    """Measure every dataset anew that has a plan or patients; return what does not fit.

    To be called after a dataset, or the opt-out list, has changed.
    """
    wanted: list[tuple[str, Stored | None]] = [
        (a.dataset, get(store, a.plan, a.version)) for a in attachments(store)
    ]
    known = {r.dataset.name: r.dataset for r in datasets.list_datasets(store)}
    on_list = optout.state(store)
    wanted += [
        (name, None)
        for name, d in known.items()
        if (on_list and d.patient) or d.holdout is not None
    ]
    problems, current = [], []
    for name, stored in wanted:
        dataset = known.get(name)
        if dataset is None:
            continue
        source = source_of(dataset, stored, on_list)
        if _known(store, dataset, source) is None:
            try:
                source, facts = _measured(store, dataset, stored)
            except (ConsiliaError, OSError) as e:  # the others are to be measured all the same
                problems.append(f"{name}: {e}")
                continue
            with store.write() as tx:
                _keep(tx, name, source, facts)
                tx.touch()
        current.append((name, source))
    _forget(store, current)
    return problems


def compiled(dataset: Dataset, plan: LoadingPlan) -> stages.Compiled:
    """Return a plan checked against a dataset's columns and declared units."""
    source = to_source(dataset)
    return stages.check(plan, source.columns, patient=dataset.patient, units=source.units)


def preview(store: Store, name: str, plan: LoadingPlan, rows: int) -> seen.Preview:
    """Show the first `rows` records of a dataset before and after a plan, stored or not."""
    known = datasets.get(store, name).dataset
    datasets.check_unchanged(known)
    compiled(known, plan)
    without, _ = left_out(store, known)
    return seen.preview(known, plan, without=without, rows=rows)


def left_out(store: Store, dataset: Dataset) -> tuple[bytes, Patients]:
    """Return the records of patients who opted out, packed, and whose they are."""
    on_list = optout.listed(store)
    if not on_list or not dataset.patient:
        return b"", frozenset()
    whole = Table(to_source(replace(dataset, loading=b"", without=b"")), 2)
    ids, missing = whole.column(dataset.patient), whole.missing(dataset.patient)
    rows, patients = optout.find(ids, missing, on_list, optout.key(store.path.parent))
    return table.pack_rows(rows), patients


# ---- inside ------------------------------------------------------------------------------


def _left(facts: DatasetFacts, ready: Prepared) -> DatasetFacts:
    found = ready.dataset
    return replace(facts, records=found.records, held=found.held_records)


def _measured(store: Store, dataset: Dataset, stored: Stored | None) -> tuple[str, Facts]:
    """Run a plan over all of a dataset, and count what is left."""
    datasets.check_unchanged(dataset)
    source = source_of(dataset, stored, optout.state(store))
    rows, patients = left_out(store, dataset)
    if stored is not None:
        compiled(dataset, stored.plan)
    plan = blocks.to_bytes(stored.plan) if stored else b""
    ready = replace(dataset, loading=plan)
    if dataset.holdout is not None and dataset.holdout.folds:
        each = holdout.folded(dataset, rows)
        folds = tuple(_parted(ready, train, held, patients) for train, held in each)
        return source, replace(_parted(ready, rows, b"", patients), folds=folds)
    held = b""
    if dataset.holdout is not None:
        rows, held = holdout.parted(dataset, rows)
    return source, _parted(ready, rows, held, patients)


def _parted(ready: Dataset, rows: bytes, held: bytes, patients: Patients) -> Facts:
    """Count what is left to train on without `rows`, and of the hold-out where there is one."""
    inside = _counted(replace(ready, without=held)).records if held else 0
    found = _counted(replace(ready, without=rows))
    return Facts(found.records, found.columns, rows, patients, held, inside)


def _counted(ready: Dataset) -> Facts:
    """Count what is left of a dataset as it is loaded; 0 where all of it is left out."""
    read = to_source(replace(ready, records=0))
    if ready.without and table.unpack_rows(ready.without, ready.records).all():
        return Facts(0, read.columns)
    found = Table(read, 2)
    return Facts(found.check(), found.columns)


def source_of(dataset: Dataset, stored: Stored | None, on_list: str) -> str:
    """Name everything that `Facts` depend on."""
    read = to_source(dataset)
    parts = (
        dataset.digest,
        sorted(read.columns.items()),
        sorted(read.missing),
        sorted(read.codes.items()),
        sorted(read.units.items()),
        read.patient,
        stored.digest if stored else "",
        on_list if dataset.patient else "",
        *(() if dataset.holdout is None else (repr(dataset.holdout),)),
    )
    return hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()


def _known(store: Store, dataset: Dataset, source: str, fold: int = 0) -> Facts | None:
    source += f"{_FOLD}{fold}" if fold else ""
    found = _kept(store, dataset.name, source)
    if found is None or dataset.holdout is None or (dataset.holdout.folds and not fold):
        return found
    apart = _kept(store, dataset.name, source + _HELD)
    return apart and replace(found, held=apart.rows, held_records=apart.records)


def _kept(store: Store, dataset: str, source: str) -> Facts | None:
    rows = store.rows(
        "SELECT records, columns, rows, patients FROM loading_facts "
        "WHERE dataset = ? AND source = ?",
        (dataset, source),
    )
    if not rows:
        return None
    records, columns, out, patients = rows[0]
    names = msgspec.msgpack.decode(columns, type=dict[str, str])
    return Facts(int(records), names, bytes(out), optout.unpacked(bytes(patients)))


def _keep(tx: Transaction, dataset: str, source: str, facts: Facts) -> None:
    tx.execute(
        "INSERT INTO loading_facts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            *(dataset, source, facts.records, msgspec.msgpack.encode(dict(facts.columns))),
            *(facts.rows, optout.packed(facts.patients)),
        ),
    )
    if facts.held:
        apart = Facts(facts.held_records, facts.columns, facts.held)
        _keep(tx, dataset, source + _HELD, apart)
    for number, fold in enumerate(facts.folds, 1):
        _keep(tx, dataset, f"{source}{_FOLD}{number}", fold)


def _forget(store: Store, current: Sequence[tuple[str, str]]) -> None:
    """Forget what was measured of files, plans and lists that are no more."""
    rows = store.rows("SELECT dataset, source FROM loading_facts")
    stale = {
        (str(dataset), str(source))
        for dataset, source in rows
        if (str(dataset), str(source).partition("/")[0]) not in set(current)
    }
    if stale:
        with store.write() as tx:
            for pair in stale:
                tx.execute("DELETE FROM loading_facts WHERE dataset = ? AND source = ?", pair)


def _insert(tx: Transaction, plan: LoadingPlan, version: int, actor: str, now: float) -> Stored:
    stored = Stored(plan, version, blocks.plan_digest(plan), now, actor)
    tx.execute(
        "INSERT INTO loading_plans VALUES (?, ?, ?, ?, ?, ?)",
        (plan.name, version, stored.digest, blocks.to_bytes(plan), now, actor),
    )
    detail = f"version {version}, {stored.digest}, {len(plan.blocks)} blocks"
    tx.audit(now, actor, "loading.store", plan.name, "stored", detail)
    return stored


def _newest(tx: Transaction, name: str) -> Stored | None:
    rows = tx.rows(
        "SELECT body, version, digest, at, actor FROM loading_plans WHERE name = ? "
        "ORDER BY version DESC LIMIT 1",
        (name,),
    )
    return _stored(rows[0]) if rows else None


def _stored(row: Row) -> Stored:
    body, version, digest, at, actor = row
    return Stored(
        blocks.from_bytes(bytes(body)), int(version), str(digest), float(at), str(actor)
    )


def _unknown(name: str) -> str:
    return f"no loading plan {name[:80]!r} at this node; see: consilia loading list"
