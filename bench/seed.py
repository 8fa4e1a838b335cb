"""A hub's directory and database with many finished jobs, for benchmarks and tests of size."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import sqlalchemy as sa

from consilia.core.events import Phase
from consilia.hub import atrest, modelversions, records, tables
from consilia.hub.access import Access
from consilia.hub.blobs import DiskBlobs
from consilia.hub.config import Directory, HubConfig, Limits, PeopleRules
from consilia.hub.modelversions import Version
from consilia.hub.records import JobRecord
from consilia.wire import frames
from consilia.wire.people import Experiment, Strategy
from consilia.wire.v1 import Plan, Study, plan_digest, study_digest

SITES = ("county", "regional", "university")
STUDY = Study("sepsis", "To be measured", SITES, ("sepsis",))
PLAN = Plan(name="sepsis", files={"plan.py": "PLAN = 1\n"}, entry="plan:PLAN")
ROUNDS = 20  # of a finished job that has its model versions
BATCH = 10_000
WATCHERS = 10


@dataclass(frozen=True, slots=True)
class Seeded:
    """What a benchmark asks for."""

    directory: Path
    token: str
    watchers: tuple[str, ...]  # tokens of others: one person has few streams at once
    ca: str
    job: str  # one that waits for its sites
    kept: tuple[str, ...]  # addresses that the snapshot answers
    frame: str  # the address of a model's frame


def seed(directory: Path, database: str, jobs: int) -> Seeded:
    """Make a hub over `database` with that many finished jobs, and one that waits."""
    config = HubConfig(
        people_listen="127.0.0.1:0",
        node_listen="127.0.0.1:0",
        database=database,
        limits=Limits(people_connections=5000),
        people=PeopleRules(requests_per_second=0),  # one token asks for everything
        log_level="warning",
    )
    atrest.init(directory, config)
    layout = Directory(directory)
    digest, size = _frame(directory)
    one, waiting = "job-0000000000000001", "job-000000000000wait"
    with atrest.at_rest(directory) as (store, access):
        watchers = asyncio.run(_tokens(access))
        asyncio.run(store.write(_govern))
        for begin in range(0, jobs, BATCH):
            count = min(BATCH, jobs - begin)
            asyncio.run(store.write(_finished(begin, count)))
        rounds = (_version(one, round, digest, size) for round in range(1, ROUNDS + 1))

        def rest(db: sa.Connection) -> None:
            records.add_job(db, _job(one, jobs + 1.0, "done"))
            for version in rounds:
                modelversions.add(db, version)
            records.add_job(db, _job(waiting, jobs + 2.0, "waiting"))

        asyncio.run(store.write(rest))
    api = "/api/v1"
    kept = (
        f"{api}/jobs?limit=20",
        f"{api}/jobs/{one}",
        f"{api}/jobs/{one}/metrics",
        f"{api}/models?limit=20",
    )
    return Seeded(
        directory,
        layout.operator_token.read_text().strip(),
        watchers,
        (layout.secrets / "ca.pem").read_text(),
        waiting,
        kept,
        f"{api}/models/{one}.{ROUNDS}/frame",
    )


async def _tokens(access: Access) -> tuple[str, ...]:
    made = [
        await access.make_token(f"auditor{n}", "auditor", 1, "hub") for n in range(WATCHERS)
    ]
    return tuple(token.secret or "" for token in made)


def _govern(db: sa.Connection) -> None:
    records.add_study(db, STUDY, "operator", 1.0)
    records.submit_study(db, STUDY.name, 1.0)
    records.add_plan(db, PLAN, STUDY.name, "operator", 1.0)


def _job(id: str, created: float, phase: Phase) -> JobRecord:
    experiment = Experiment(study=STUDY.name, plan=plan_digest(PLAN), rounds=ROUNDS)
    return JobRecord(id, experiment, study_digest(STUDY), "operator", created, phase)


def _finished(begin: int, count: int) -> Callable[[sa.Connection], None]:
    """Return what enters jobs as one statement: record by record takes minutes for 100,000."""
    model = _job("", 0.0, "done")
    same = {
        "study": STUDY.name,
        "study_digest": model.study_digest,
        "plan": model.experiment.plan,
        "experiment": msgspec.json.encode(model.experiment).decode(),
        "author": "operator",
        "phase": "done",
        "cause": "",
    }
    rows = [
        {"id": f"job-s{n:015d}", "created": 1.0 + n, **same}
        for n in range(begin, begin + count)
    ]

    def enter(db: sa.Connection) -> None:
        db.execute(sa.insert(tables.jobs), rows)

    return enter


def _version(job: str, round: int, digest: str, size: int) -> Version:
    return Version(
        id=f"{job}.{round}",
        job=job,
        round=round,
        digest=digest,
        bytes=size,
        parent=f"{job}.{round - 1}" if round > 1 else None,
        study=STUDY.name,
        study_digest=study_digest(STUDY),
        plan=plan_digest(PLAN),
        arguments={"lr": 0.1},
        strategy=Strategy(),
        sites=SITES,
        records=3000,
        metrics={"loss": 1.0 / round, "auc": 1 - 0.5 / round},
        created=10.0 + round,
        seconds=1.0,
    )


def _frame(directory: Path) -> tuple[str, int]:
    blobs = DiskBlobs(directory)
    with blobs.open_spool("seed") as spool:
        header = frames.write(spool.fd, {"w": np.arange(10_000, dtype=np.float32)})
    blobs.adopt("seed", header.digest)
    blobs.close()
    return header.digest, header.total_bytes
