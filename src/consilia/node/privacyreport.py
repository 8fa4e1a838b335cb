"""A privacy report at a site: who may have one made, of what, where it runs, and its trace.

The site's own staff ask for it. The plan must be approved here and the dataset registered and
unchanged, as for training, and the plan's code runs behind the same walls. An audit line says
that it began, another how it ended. All files it works with lie in DIR/audit, readable by the
node's user alone, and are gone at the end; a running agent is not disturbed.
"""

import asyncio
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

import consilia
from consilia.core.weights import Weights
from consilia.data.registry import Dataset
from consilia.errors import ConfigError, NotFound, Refused, WireError
from consilia.node import approvals, aside, config, datasets, evidence
from consilia.node.arguments import argument_problem
from consilia.node.config import NodeConfig
from consilia.node.evidence import Asked, Measured
from consilia.node.loading import Loading
from consilia.node.policy import short, signature_problem
from consilia.node.runner import Runner, choose_launcher
from consilia.node.standing import policy_of
from consilia.node.store import Store
from consilia.privacy import verdict as verdicts
from consilia.privacy.accountant import cost, epsilon
from consilia.privacy.verdict import Claim, Findings, Subject, Verdict
from consilia.wire import frames
from consilia.wire.v1 import Arguments, Dp, plan_digest

FOLDER = "audit"
BUSY = "another model is being examined"
ACTION = "privacy.report"
DEFAULT_ROUNDS = 10
MOST_CANARIES = 1000
MOST_UNPACKED = 8 << 30  # bytes of NAME.npz
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person asked for."""

    model: Path
    plan: str  # digest, or its beginning
    dataset: str
    holdout: str = ""  # "" for none: `split` of the dataset is held out from a stand-in
    split: float = 0.2
    job: str = ""  # whose charges the ledger is asked for
    rounds: int = 0  # 0: DEFAULT_ROUNDS
    references: int = 8
    canaries: int = -1  # -1: as many as the dataset has records, at most MOST_CANARIES
    arguments: Arguments = field(default_factory=dict)
    dp: Dp | None = None
    name: str = ""  # of the model, for people; "" for the file's
    digest: str = ""  # that its frame must have; "" for any
    asked: bool = False  # by somebody else than this site's people
    study: str = ""  # whose way of loading the datasets is taken; "": that of any study


def make(  # noqa: PLR0913  by keyword
    store: Store,
    directory: Path,
    wanted: Wanted,
    *,
    actor: str,
    today: date,
    now: Callable[[], float],
    tell: Tell,
) -> tuple[Findings, Verdict]:
    """Run the attacks and return what they found, with the verdict.

    Raises Refused for a plan that is not approved, NotFound and DataError for the dataset,
    ConfigError for what cannot be examined, WorkerError when a task fails.
    """
    settings = config.load(directory)
    with aside.workplace(directory, FOLDER, BUSY) as folder:
        asked = prepared(store, settings, wanted, folder, today)
        evidence.check(asked)
        claim = _claim(store, wanted, asked)
        digest = frames.read_header(asked.model).digest
        if wanted.digest and digest != wanted.digest:
            raise ConfigError(
                f"the model in {wanted.model.name} has the digest {digest}, needed "
                f"{wanted.digest}: it is not the model that was named"
            )
        about = f"plan {short(_digest(asked))}, model {digest}, by {_name(wanted)}"
        with store.write() as tx:
            tx.audit(now(), actor, ACTION, wanted.dataset, "started", about)
        try:
            measured = asyncio.run(_measured(settings, asked, folder, tell))
        except BaseException as error:
            with store.write() as tx:
                tx.audit(now(), actor, ACTION, wanted.dataset, "failed", type(error).__name__)
            raise
        subject = _subject(settings, wanted, asked, digest, now())
        found = Findings(
            subject,
            claim,
            measured.attacks,
            measured.planted,
            measured.inversions,
            measured.notes,
        )
        judged = verdicts.judge(found)
        with store.write() as tx:
            tx.audit(now(), actor, ACTION, wanted.dataset, judged.word, about)
    return found, judged


async def _measured(settings: NodeConfig, asked: Asked, folder: Path, tell: Tell) -> Measured:
    """Run the attack tasks in sandboxed workers of their own."""
    launcher = choose_launcher(settings.sandbox)
    if said := launcher.warning:
        tell(f"WARNING: the plan's code runs {said}")
    runner = Runner(launcher, folder, settings.limits, site=settings.site, cuda=settings.cuda)
    try:
        rng = np.random.default_rng(int.from_bytes(os.urandom(16), "big"))
        return await evidence.measure(runner, asked, folder, rng, tell)
    finally:
        await runner.close()


def prepared(
    store: Store, settings: NodeConfig, wanted: Wanted, folder: Path, today: date
) -> Asked:
    """Return what is to be examined: an approved plan, a dataset as it is loaded, the model."""
    record = approvals.get(store, wanted.plan, today)
    if record.digest not in approvals.grants(store) or record.state != "approved":
        raise Refused(
            f"plan {short(record.digest)} is {record.state} here; needed an approval: "
            "consilia node approve"
        )
    policy = policy_of(store, settings)
    grant = policy.plans[record.digest]
    if problem := signature_problem(record.digest, grant, policy):
        raise Refused(problem)
    # a request may set what a job may set, and nothing else
    problem = argument_problem(wanted.arguments, grant.arguments, grant.defaults, policy.ranges)
    if wanted.asked and problem:
        raise Refused(f"the request for {wanted.name}: {problem}")
    dataset = _dataset(store, wanted.dataset, wanted.study)
    holdout = _dataset(store, wanted.holdout, wanted.study) if wanted.holdout else None
    canaries = wanted.canaries
    if canaries < 0:
        canaries = min(dataset.records, MOST_CANARIES)
    return Asked(
        record.plan,
        dataset,
        holdout,
        wanted.split,
        _frame(wanted.model, folder / "model.frame"),
        wanted.arguments,
        wanted.rounds or DEFAULT_ROUNDS,
        wanted.dp,
        wanted.references,
        canaries,
        settings.limits.seconds,
    )


def _dataset(store: Store, name: str, study: str) -> Dataset:
    """Return a dataset as a task of the study gets it: its loading plan, and who opted out."""
    found = datasets.get(store, name)
    if not found.enabled:
        raise Refused(
            f"dataset {name!r} is disabled: no task may use it; consilia dataset enable {name}"
        )
    datasets.check_unchanged(found.dataset)
    ready = Loading(store).prepared(found.dataset, study)
    if ready.problem:
        raise Refused(ready.problem)
    return ready.dataset


def _claim(store: Store, wanted: Wanted, asked: Asked) -> Claim | None:
    """Return what is promised: by the ledger where a job is named, else by the experiment."""
    if wanted.job:
        return evidence.ledger_claim(store, wanted.job, wanted.dataset)
    if asked.dp is None:
        return None
    spent = epsilon(cost(asked.dp, asked.rounds), asked.dp.delta)
    return Claim(spent, asked.dp.delta, asked.dp.level, "experiment")


def _frame(source: Path, target: Path) -> Path:
    """Write a model as a tensor frame of our own; it is checked whole on the way."""
    try:
        weights = _npz(source) if source.suffix == ".npz" else frames.read(source)
        frames.write(target, weights)
    except FileNotFoundError:
        raise NotFound(f"{source}: no such model file") from None
    except (OSError, EOFError, ValueError, MemoryError, WireError, zipfile.BadZipFile) as e:
        raise ConfigError(
            f"{source} is no model: {e}; needed NAME.npz or a frame, as consilia models "
            "download writes them"
        ) from None
    return target


def _npz(source: Path) -> Weights:
    with zipfile.ZipFile(source) as parts:  # a few bytes of somebody's file may unpack to many
        if (size := sum(part.file_size for part in parts.infolist())) > MOST_UNPACKED:
            raise ValueError(f"it unpacks to {size} bytes, the limit is {MOST_UNPACKED}")
    with np.load(source, allow_pickle=False) as archive:
        return {name: np.ascontiguousarray(archive[name]) for name in archive.files}


def _subject(
    settings: NodeConfig, wanted: Wanted, asked: Asked, digest: str, at: float
) -> Subject:
    dp = asked.dp
    private = ""
    if dp is not None:
        private = (
            f"{dp.level} level, noise {dp.noise_multiplier:g}, clip {dp.clip:g}, sampling "
            f"{dp.sampling:g}, {dp.steps} steps a round, {asked.rounds} rounds"
        )
    return Subject(
        settings.site,
        _name(wanted),
        digest,
        asked.plan.name,
        _digest(asked),
        asked.dataset.name,
        asked.dataset.records,
        asked.holdout.name if asked.holdout else "",
        asked.holdout is None,
        asked.rounds,
        asked.references,
        private,
        at,
        consilia.__version__,
    )


def _name(wanted: Wanted) -> str:
    return wanted.name or wanted.model.name


def _digest(asked: Asked) -> str:
    return plan_digest(asked.plan)
