"""The site's answers to statistical questions, and its memory of all it has answered.

A question asks for a number about one group of records, or about several disjoint ones. It is
answered when each number passes the rules of `privacy.disclosure` and when, together with
every earlier answer about the same patients, nothing about fewer than k of them can be worked
out (`privacy.differencing`). The memory lasts for ever, whatever becomes of datasets, studies
and their names: its groups are sets of salted record identities in one patient universe.

    the same question, the same records     the same answer, to the bit: averaging gains nothing
    the same question, a few others         the earlier answer stands until k have changed
    anything refused                        SUPPRESSED; the reason goes to the audit trail only

A new group that differs from what is known by nobody is refused like one that differs by one
to k - 1: otherwise a refusal would tell that somebody is there. So ask for a breakdown at
once, as one question, not for its parts one by one.

What was decided is committed before it is returned, against the memory as it then is: threads
and processes on one store cannot together learn more than one of them alone.
"""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from consilia.errors import DataError
from consilia.node.config import Disclosure
from consilia.node.numbers import rules
from consilia.node.store import Store, Transaction
from consilia.privacy import disclosure
from consilia.privacy.differencing import Group as Packed
from consilia.privacy.differencing import audit, packed
from consilia.privacy.disclosure import SUPPRESSED, Floats, Rules, Suppressed, Why

ALL = "all"  # the predicate that chooses every record of a dataset
SALT_BYTES = 32

Ids = NDArray[np.uint64]
Mask = NDArray[np.bool_]
Number = int | float | Suppressed
Rule = Callable[[Why], Sequence[Number]]


@dataclass(frozen=True, slots=True)
class Group:
    """Records of a dataset: which ones, and the digest of what chose them, in a normal form."""

    predicate: str
    members: Mask


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `query` is a digest of the statistic, its column and the predicates.

    `population` are the identities (`Answerer.identities`) of all records that the dataset has
    now; `groups` are disjoint.
    """

    study: str
    universe: str
    dataset: str
    query: str
    population: Ids
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class _Memory:
    """What was answered about a universe: groups as rows over its records `ids`."""

    last: int  # newest group's number
    ids: Ids
    names: tuple[str, ...]
    groups: tuple[Packed, ...]

    def latest(self, name: str) -> Packed | None:
        """Return the records a predicate last chose, None when it was never answered."""
        pairs = zip(reversed(self.names), reversed(self.groups), strict=True)
        return next((group for found, group in pairs if found == name), None)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What to remember of a question that may be answered; `objections` when it may not."""

    objections: tuple[str, ...]
    ids: Ids  # of the universe with the question's records
    fresh: tuple[tuple[str, Packed], ...] = ()


class Answerer:
    """The way out for statistics. Methods block; any thread or process may call them."""

    def __init__(
        self,
        store: Store,
        settings: Disclosure,
        now: Callable[[], float],
        random: Callable[[int], bytes],
        study_k: int = 0,
    ) -> None:
        """Answer under the site's settings, k raised to the study's; `random` gives salts."""
        self._store = store
        self._rules = rules(settings, study_k)
        self._most = settings.answers
        self._now = now
        self._random = random

    @property
    def rules(self) -> Rules:
        """The thresholds in force."""
        return self._rules

    def identities(self, universe: str, keys: Iterable[str]) -> Ids:
        """Return what stands for records in the memory, from what identifies them at the site.

        The same patient has the same key in every dataset of the universe and in every version
        of it. Keys are hashed with a secret of the universe: the memory holds none of them.
        """
        salt = self._salt(universe)
        hashes = (hashlib.blake2b(k.encode(), digest_size=8, key=salt).digest() for k in keys)
        return np.frombuffer(b"".join(hashes), np.uint64)

    # ---- questions -------------------------------------------------------------------------

    def count(self, question: Question) -> int | Suppressed:
        """Return how many records the question's one group has."""
        (found,) = self._ask(
            question,
            lambda why: [disclosure.release_count(_size(question), self._rules, why)],
        )
        return found if isinstance(found, Suppressed) else int(found)

    def table(
        self, question: Question, shape: tuple[int, int] | None = None
    ) -> tuple[int | Suppressed, ...]:
        """Return the counts of a breakdown: groups that together are all that it is of.

        `shape` makes it a crosstab of rows and columns, the groups in row-major order. A cell
        is given for every level that can occur, "missing" included where values can be.
        """
        sizes = np.array([int(g.members.sum()) for g in question.groups], np.int64)
        if not sizes.size or (shape and shape[0] * shape[1] != sizes.size):
            raise DataError(f"{sizes.size} groups do not make a table of {shape}")
        sides = shape or (1, sizes.size)

        def cells(why: Why) -> list[Number]:
            rows = disclosure.release_table(sizes.reshape(sides), self._rules, why)
            return [cell for row in rows for cell in row]

        found = self._ask(question, cells)
        return tuple(n if isinstance(n, Suppressed) else int(n) for n in found)

    def mean(self, question: Question, values: Floats) -> float | Suppressed:
        """Return the mean of `values` (one a record of the population) over the group.

        They are a column as the site has it. One that the asker computed could mark a patient
        in its digits, and two such means over the same group are a question about him.
        """
        return self._statistic(question, values, disclosure.release_mean)

    def variance(self, question: Question, values: Floats) -> float | Suppressed:
        """Return the variance of `values` over the group."""
        return self._statistic(question, values, disclosure.release_variance)

    def quantile(self, question: Question, values: Floats, at: float) -> float | Suppressed:
        """Return the quantile of `values` over the group at one of the seven places."""

        def rule(found: Floats, limits: Rules, why: Why) -> float | Suppressed:
            return disclosure.release_quantile(found, at, limits, why)

        return self._statistic(question, values, rule)

    def fit(
        self, question: Question, coefficients: Sequence[float], records: int
    ) -> tuple[float, ...] | Suppressed:
        """Return a regression's coefficients; `records` counts the group's, or its events."""

        def own(why: Why) -> Sequence[Number]:
            held = min(records, _size(question))
            found = disclosure.release_fit(coefficients, held, self._rules, why)
            return [SUPPRESSED] * len(coefficients) if isinstance(found, Suppressed) else found

        found = self._ask(question, own)
        numbers = [float(n) for n in found if not isinstance(n, Suppressed)]
        return tuple(numbers) if len(numbers) == len(found) else SUPPRESSED

    # ---- inside ----------------------------------------------------------------------------

    def _statistic(
        self,
        question: Question,
        values: Floats,
        rule: Callable[[Floats, Rules, Why], float | Suppressed],
    ) -> float | Suppressed:
        if len(values) != len(question.population):
            raise DataError(
                f"{len(values)} values for {len(question.population)} records; needed one each"
            )
        _size(question)
        chosen = np.asarray(values, np.float64)[question.groups[0].members]
        (found,) = self._ask(question, lambda why: [rule(chosen, self._rules, why)])
        return found if isinstance(found, Suppressed) else float(found)

    def _ask(self, question: Question, own: Rule) -> list[Number]:
        """Answer a question from the memory or anew, and remember it; all in one transaction.

        The long part, comparing groups, runs before the transaction, which does it again only
        when another answer came between.
        """
        _check(question)
        said: list[str] = []
        answers = list(own(said.append))
        shown = [not isinstance(a, Suppressed) for a in answers]
        if len(shown) != len(question.groups):  # several numbers about one group
            shown = [any(shown)] * len(question.groups)
        memory = self._recall(self._store, question.universe)
        verdict = self._judge(question, memory, shown)
        with self._store.write() as tx:
            if _newest(tx, question.universe) != memory.last:
                verdict = self._judge(question, self._recall(tx, question.universe), shown)
            objections = (*said, *verdict.objections)
            earlier = self._earlier(tx, question)
            refused = verdict.objections or not any(shown)
            if earlier is not None and (refused or earlier[0] == _digest(question)):
                self._note(tx, question, "repeated", objections)
                return _numbers(earlier[1])
            if refused:
                self._note(tx, question, "refused", objections)
                return [SUPPRESSED] * len(answers)
            self._remember(tx, question, verdict, answers)
            self._note(tx, question, "answered", objections)
            return answers

    def _judge(self, q: Question, memory: _Memory, shown: Sequence[bool]) -> _Verdict:
        """Compare what would be shown with what was; no rule on the numbers themselves."""
        ids, place = _placed(memory.ids, q.population)
        everyone = Group(ALL, np.ones(len(q.population), np.bool_))
        objections: list[str] = []
        fresh: list[tuple[str, Packed]] = []
        for group, visible in [(everyone, True), *zip(q.groups, shown, strict=True)]:
            mask = np.zeros(len(ids), np.bool_)
            mask[place] = group.members
            name, now = _name(q, group.predicate), packed(mask)
            before = memory.latest(name)
            moved = None if before is None else _apart(before, now)
            if moved is not None and 0 < moved < self._rules.k:
                # hidden ones too: that one is hidden now, and was not, says it has lost some
                objections.append(f"{moved} records changed since it was answered about")
            if visible and moved != 0 and name not in (known for known, _ in fresh):
                fresh.append((name, now))
        if fresh and len(memory.groups) + len(fresh) > self._most:
            objections.append(f"{self._most} groups were answered about: the site's limit")
        elif fresh and not objections:
            objections += self._compared(memory.groups, fresh, _name(q, ALL))
        return _Verdict(tuple(objections), ids, tuple(fresh))

    def _compared(
        self, known: Sequence[Packed], fresh: Sequence[tuple[str, Packed]], everyone: str
    ) -> Iterable[str]:
        """Object when the new groups and the known ones isolate few records, or nobody."""
        found = audit([*known, *(group for _, group in fresh)], self._rules.k)
        if found.isolates:
            yield f"with earlier answers it is about fewer than {self._rules.k} records"
        whole = [group for name, group in fresh if name == everyone]
        for i, (name, group) in enumerate(fresh, len(known)):
            if i in found.independent or name == everyone:
                continue
            # the last part of a breakdown follows from the others, which is no fault
            alone = audit([*known, *whole, group], self._rules.k)
            if len(known) + len(whole) not in alone.independent:
                yield (
                    "it follows from earlier answers: these are exactly the patients of one, "
                    "or of several put together, asked about in another way"
                )

    def _recall(self, reader: Store | Transaction, universe: str) -> _Memory:
        """Read the memory of a universe: its records last, they only ever grow."""
        rows = reader.rows(
            "SELECT seq, predicate, members FROM disclosed_groups "
            "WHERE universe = ? ORDER BY seq",
            (universe,),
        )
        ids = reader.rows("SELECT ids FROM disclosed_universes WHERE name = ?", (universe,))
        return _Memory(
            int(rows[-1][0]) if rows else 0,
            np.frombuffer(ids[0][0] if ids else b"", np.uint64),
            tuple(str(name) for _, name, _ in rows),
            tuple(np.frombuffer(zlib.decompress(body), np.uint8) for _, _, body in rows),
        )

    def _remember(
        self, tx: Transaction, q: Question, verdict: _Verdict, answers: Sequence[Number]
    ) -> None:
        at = self._now()
        known = tx.execute(
            "UPDATE disclosed_universes SET ids = ? WHERE name = ?",
            (verdict.ids.tobytes(), q.universe),
        )
        if not known:
            raise DataError(f"universe {q.universe[:80]!r} has given nobody an identity")
        for name, group in verdict.fresh:
            tx.execute(
                "INSERT INTO disclosed_groups (universe, predicate, at, members) "
                "VALUES (?, ?, ?, ?)",
                (q.universe, name, at, zlib.compress(group.tobytes(), 1)),
            )
        body = [None if isinstance(a, Suppressed) else a for a in answers]
        tx.execute(
            "INSERT INTO disclosed_answers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT "
            "(universe, query, rules) DO UPDATE SET at = excluded.at, "
            "groups = excluded.groups, body = excluded.body",
            (
                *(q.universe, _name(q, q.query), str(self._rules), at),
                *(_digest(q), msgspec.msgpack.encode(body)),
            ),
        )

    def _earlier(self, tx: Transaction, q: Question) -> tuple[str, bytes] | None:
        """Return which records a question was last answered about by these rules, and how."""
        rows = tx.rows(
            "SELECT groups, body FROM disclosed_answers "
            "WHERE universe = ? AND query = ? AND rules = ?",
            (q.universe, _name(q, q.query), str(self._rules)),
        )
        return (str(rows[0][0]), bytes(rows[0][1])) if rows else None

    def _note(
        self, tx: Transaction, q: Question, outcome: str, objections: Iterable[str]
    ) -> None:
        """One audit line a question: what was asked for whom, and what struck; no number."""
        groups = "1 group" if len(q.groups) == 1 else f"{len(q.groups)} groups"
        detail = f"study {q.study}, dataset {q.dataset}, {groups}"
        reasons = "; ".join(dict.fromkeys(objections))
        detail += f"; {reasons}" if reasons else ""
        tx.audit(self._now(), "agent", "disclosure.answer", q.query, outcome, detail)

    def _salt(self, universe: str) -> bytes:
        """Return the universe's secret, made at its first use."""
        rows = self._store.rows(
            "SELECT salt FROM disclosed_universes WHERE name = ?", (universe,)
        )
        if not rows:
            with self._store.write() as tx:
                tx.execute(
                    "INSERT INTO disclosed_universes VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                    (universe, self._random(SALT_BYTES), b""),
                )
            return self._salt(universe)
        return bytes(rows[0][0])


def _check(q: Question) -> None:
    """Raise DataError for a question that cannot be judged: its maker's defect."""
    if not q.groups:
        raise DataError(f"question {q.query[:80]!r} names no group of records")
    if len({g.predicate for g in q.groups}) != len(q.groups):
        raise DataError("two groups of one question have the same predicate")
    if len(np.unique(q.population)) != len(q.population):
        raise DataError("two records of a population have one identity; group them by patient")
    if any(g.members.shape != q.population.shape for g in q.groups):
        raise DataError("a group's mask needs one entry for each record of the population")
    if (np.sum([g.members for g in q.groups], axis=0) > 1).any():
        raise DataError("the groups of one question overlap; ask about them one by one")
    for group in q.groups:
        if group.predicate == ALL and not group.members.all():
            raise DataError(f"predicate {ALL!r} chooses every record of the population")


def _size(q: Question) -> int:
    """Return the records of a question's one group."""
    if len(q.groups) != 1:
        raise DataError(f"{len(q.groups)} groups; this statistic is of one")
    return int(q.groups[0].members.sum())


def _placed(known: Ids, population: Ids) -> tuple[Ids, NDArray[np.intp]]:
    """Return the universe with the population in it, and each record's place there."""
    fresh = population[~np.isin(population, known)]
    ids = np.concatenate([known, fresh])
    order = np.argsort(ids)
    return ids, order[np.searchsorted(ids, population, sorter=order)]


def _apart(a: Packed, b: Packed) -> int:
    """Return how many records are in one of two groups only."""
    width = max(len(a), len(b))
    both = [np.pad(group, (0, width - len(group))) for group in (a, b)]
    return int(np.bitwise_count(both[0] ^ both[1]).sum())


def _name(q: Question, digest: str) -> str:
    """Return a predicate or query of a question as the memory knows it."""
    return f"{q.dataset}/{digest}"


def _newest(tx: Transaction, universe: str) -> int:
    ((last,),) = tx.rows(
        "SELECT coalesce(max(seq), 0) FROM disclosed_groups WHERE universe = ?", (universe,)
    )
    return int(last)


def _digest(q: Question) -> str:
    """Name exactly the records a question is about."""
    digest = hashlib.sha256()
    for group in q.groups:
        chosen = np.sort(q.population[group.members]).tobytes()
        digest.update(len(chosen).to_bytes(8, "big") + chosen)
    return digest.hexdigest()


def _numbers(body: bytes) -> list[Number]:
    found = msgspec.msgpack.decode(body, type=list[int | float | None])
    return [SUPPRESSED if n is None else n for n in found]
