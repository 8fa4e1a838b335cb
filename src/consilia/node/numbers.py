"""What a training task tells besides its update: metrics, progress, its record count.

Each number passes `privacy.disclosure` under the site's settings. A metric's name leaves only
when it stands in the approved source of the plan: a name made while the data is read could
carry what it says. How many tasks of a dataset tell metrics on one day is limited; it is
counted in the transaction that releases them. While a task runs, only how far it is leaves, in
20 steps, unless the site lets its metrics out as well.
"""

import re
import threading
from dataclasses import dataclass
from datetime import date

import msgspec

from consilia.errors import Refused
from consilia.node.config import Disclosure
from consilia.node.evaluating import Predictions, measured
from consilia.node.store import Store, Transaction
from consilia.privacy import disclosure
from consilia.privacy.disclosure import DIGITS, Rules
from consilia.wire.v1 import Evaluated, Evaluation, Metrics, Plan, Task

# Made by the adapters of consilia.plans, not by a plan's source.
FRAMEWORK_METRICS = frozenset({"loss", "score"})
RECEIVED = "received_"  # how the adapters name what they compute on the received model
MAX_TASKS = 256  # running tasks whose progress is remembered
MAX_NOTE = 1000  # characters about what was kept back
MAX_PLANS = 64  # plans whose words are remembered

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PART = re.compile(r"[A-Za-z0-9_]+")


def rules(settings: Disclosure, study_k: int = 0) -> Rules:
    """Return the site's thresholds, raised to a study's k where that is higher."""
    digits = settings.metric_digits if settings.metrics == "rounded" else DIGITS
    plain = Rules(settings.k, settings.counts == "rounded", digits, settings.categories)
    return plain.raised(study_k)


@dataclass(frozen=True, slots=True)
class Told:
    """The metrics that leave, and for the site's trail what did not, and why."""

    metrics: Metrics
    note: str
    dataset: str
    day: str  # ISO date


@dataclass(slots=True)
class _Running:
    """What a running task has said."""

    fraction: float = 0.0
    metrics: int = 0  # messages that had any


class Numbers:
    """The way out for a training task's numbers. Any thread may call it."""

    def __init__(self, store: Store, settings: Disclosure) -> None:
        """Read plans and count releases in `store`."""
        self.rules = rules(settings)
        self._store = store
        self._settings = settings
        self._running: dict[str, _Running] = {}
        self._words: dict[str, frozenset[str]] = {}
        self._taken: dict[tuple[str, str], int] = {}  # dataset, day -> tasks that told metrics
        self._lock = threading.Lock()

    def result(
        self, task: Task, metrics: Metrics, *, dataset: str, records: int, today: date
    ) -> Told:
        """Return which of a finished task's metrics leave; `count` it when they do."""
        said: list[str] = []
        kept = self._metrics(task, metrics, records, said)
        if kept and not self._admitted(dataset, today.isoformat()):
            said.append(f"{self._settings.metrics_per_day} tasks told metrics today")
            kept = {}
        return Told(kept, "; ".join(dict.fromkeys(said))[:MAX_NOTE], dataset, today.isoformat())

    def evaluated(
        self, found: Predictions, asked: Evaluation, *, dataset: str, today: date
    ) -> tuple[Evaluated, Told]:
        """Return what a site tells of a model, and what to `count`; Refused when nothing."""
        said: list[str] = []
        if self._settings.metrics == "none":
            raise Refused("this site releases no metrics")
        if self._settings.metrics == "summed":
            raise Refused("this site's metrics leave in masked sums only")
        exact = self._settings.metrics == "all"
        answer = measured(found, asked, self.rules, exact, said.append)
        if not self._admitted(dataset, today.isoformat()):
            raise Refused(f"{self._settings.metrics_per_day} tasks told metrics today")
        names = {name: m.value for name, m in answer.measures.items()}
        note = "; ".join(dict.fromkeys(said))[:MAX_NOTE]
        return answer, Told(names, note, dataset, today.isoformat())

    def summed(self, *, dataset: str, today: date) -> Told:
        """Return what to `count` of a vector in a masked sum; Refused as `evaluated`."""
        if self._settings.metrics == "none":
            raise Refused("this site releases no metrics")
        if not self._admitted(dataset, today.isoformat()):
            raise Refused(f"{self._settings.metrics_per_day} tasks told metrics today")
        return Told({"sums": 0.0}, "", dataset, today.isoformat())

    def count(self, tx: Transaction, told: Told) -> None:
        """Write down, with the release itself, that a task told metrics."""
        if told.metrics:
            tx.execute(
                "INSERT INTO disclosed_metrics VALUES (?, ?, 1) "
                "ON CONFLICT (dataset, day) DO UPDATE SET count = count + 1",
                (told.dataset, told.day),
            )

    def progress(
        self, lease: str, task: Task | None, fraction: float, metrics: Metrics, records: int
    ) -> tuple[float, Metrics, bool]:
        """Return the fraction and metrics that may leave, and whether they are the first.

        `records` is how many the task's dataset has. Without a task nothing can be judged, so
        no metric leaves. Raises DataError for a fraction that is none.
        """
        with self._lock:
            state = self._state(lease)
            state.fraction = disclosure.release_fraction(fraction, state.fraction)
            if (
                task is None
                or not self._settings.progress_metrics
                or state.metrics >= self._settings.progress_per_task
            ):
                return state.fraction, {}, False
            kept = self._metrics(task, metrics, records, [])
            state.metrics += bool(kept)
            return state.fraction, kept, bool(kept) and state.metrics == 1

    def ended(self, lease: str) -> None:
        """Forget a task that has its answer."""
        with self._lock:
            self._running.pop(lease, None)

    # ---- inside ----------------------------------------------------------------------------

    def _metrics(self, task: Task, metrics: Metrics, records: int, said: list[str]) -> Metrics:
        if not metrics:
            return {}
        if self._settings.metrics == "none":
            said.append("this site releases no metrics")
            return {}
        if self._settings.metrics == "summed" and not task.cohort:
            said.append("this site's metrics leave in masked sums only")
            return {}
        return disclosure.release_metrics(
            metrics,
            records,
            self.rules,
            words=self._vocabulary(task.plan, metrics),
            exact=self._settings.metrics == "all",
            private=task.privacy.dp is not None,
            why=said.append,
        )

    def _admitted(self, dataset: str, day: str) -> bool:
        """Take one of the day's places, before it is known whether its task is released."""
        with self._lock:
            if (dataset, day) not in self._taken:
                rows = self._store.rows(
                    "SELECT count FROM disclosed_metrics WHERE dataset = ? AND day = ?",
                    (dataset, day),
                )
                self._taken = {k: v for k, v in self._taken.items() if k[1] == day}
                self._taken[dataset, day] = int(rows[0][0]) if rows else 0
            self._taken[dataset, day] += 1
            return self._taken[dataset, day] <= self._settings.metrics_per_day

    def _state(self, lease: str) -> _Running:
        if lease not in self._running and len(self._running) >= MAX_TASKS:
            del self._running[next(iter(self._running))]
        return self._running.setdefault(lease, _Running())

    def _vocabulary(self, plan: str, names: Metrics) -> frozenset[str]:
        """Return those of `names` that were there before any record was read."""
        words = self._words.get(plan)
        if words is None:
            rows = self._store.rows("SELECT body FROM plans WHERE digest = ?", (plan,))
            source = msgspec.msgpack.decode(rows[0][0], type=Plan).files if rows else {}
            words = FRAMEWORK_METRICS.union(*map(words_of, source.values()))
            if rows:
                if len(self._words) >= MAX_PLANS:
                    self._words.clear()
                self._words[plan] = words
        return frozenset(name for name in names if _stem(name, words) in words)


def words_of(source: str) -> frozenset[str]:
    """Return the words of a plan's source that can be names of metrics."""
    whole = frozenset(_WORD.findall(source))
    return whole | frozenset(part for word in whole for part in _PART.findall(word))


def _stem(name: str, words: frozenset[str]) -> str:
    """Take off what the framework puts around a name, unless the source itself says it."""
    if name in words:
        return name
    return name.removeprefix(RECEIVED).removesuffix(disclosure.RECORDS_OF)
