"""What a privacy report found, and the one word it comes to. Records and pure rules.

The verdict is one of three:

    leaky          an attack told records apart, or a promise of differential privacy is broken
    bounded        differential privacy bounds what any attack can learn, and none learned more
    no-leak-found  the attacks tried found nothing; another attack, or more records, might

An attack on one model makes several tests. Together they err with 5 %: each is held to
1 - 0.05 / tests. A leak has to be of a size too: with enough records every difference is
beyond doubt, also one that helps nobody to guess.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from consilia.privacy import evidence
from consilia.privacy.evidence import Area, Canaries, Floats, Tail

Word = Literal["leaky", "bounded", "no-leak-found"]
How = Literal["formula", "search"]

CONFIDENCE = 0.95  # of all tests together
TESTS = 5  # two areas, two tails, the canaries
EACH = 1 - (1 - CONFIDENCE) / TESTS
MARGIN = 0.02  # of an AUC above one half; below it 51 guesses of 100 are right
TOLERATED = 0.1  # epsilon of a tail or of canaries that counts as a leak: odds 1.1 to 1
MEANINGFUL = 10.0  # epsilon above which a promise bounds little
LOW_FPR = 0.01
_POINTS = 200  # of a curve that is drawn
_BINS = 24
POOR = 0.6  # least AUC found above which a report says that it is weak


@dataclass(frozen=True, slots=True)
class Subject:
    """What was examined, where and how."""

    site: str
    model: str  # file name
    model_digest: str
    plan: str
    plan_digest: str
    dataset: str
    records: int
    holdout: str  # dataset of records that the model never saw; "" for a stand-in
    stand_in: bool  # the attacked model was trained here, on a part of the dataset
    rounds: int  # of the models trained here
    references: int
    private: str  # differential privacy of the training, in words; "" for none
    at: float  # Unix seconds
    version: str  # of Consilia


@dataclass(frozen=True, slots=True)
class Claim:
    """A promise of differential privacy. `source`: who says so."""

    epsilon: float
    delta: float
    level: str
    source: Literal["ledger", "experiment"]


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to tell members from others, and how it went."""

    name: str
    members: int
    others: int
    area: Area
    least: float  # AUC from which on a leak would most likely have been found
    tpr: float  # at LOW_FPR
    tail: Tail
    curve: tuple[tuple[float, float], ...]  # (FPR, TPR)
    bins: tuple[tuple[float, float, float], ...]  # score, share of members, share of others


@dataclass(frozen=True, slots=True)
class Planted:
    """What the canaries proved of the training as it was run here."""

    found: Canaries
    delta: float
    accounted: float | None  # epsilon of that training; None without differential privacy


@dataclass(frozen=True, slots=True)
class Inversion:
    """What one update of a round gives away about the records it was computed on."""

    records: int
    plain: float  # share of records rebuilt to within NEAR of every feature
    masked: float
    nearest_plain: float  # distance of the nearest guess, in standard deviations
    nearest_masked: float
    correlation: float  # of what the hub sees of a masked update with the update
    numbers: int  # that the update has
    how: How = "formula"  # how records were looked for


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a report tells."""

    subject: Subject
    claim: Claim | None
    attacks: tuple[Attack, ...]
    planted: Planted | None
    inversions: tuple[Inversion, ...]
    notes: tuple[str, ...] = ()  # what could not be tried, and why


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word, and why, in sentences."""

    word: Word
    because: tuple[str, ...]


NEAR = 0.1  # standard deviations of each feature, root mean square


def attack(
    name: str, members: Floats, others: Floats, delta: float, rng: np.random.Generator
) -> Attack:
    """Return how well scores tell members from others."""
    fpr, tpr = evidence.roc(members, others)
    keep = np.unique(np.linspace(0, len(fpr) - 1, _POINTS).astype(int))
    return Attack(
        name,
        len(members),
        len(others),
        evidence.area(members, others, EACH),
        evidence.least_area(len(members), len(others), EACH),
        evidence.tpr_at(members, others, LOW_FPR),
        evidence.threshold_audit(members, others, delta, EACH, rng),
        tuple((float(f), float(t)) for f, t in zip(fpr[keep], tpr[keep], strict=True)),
        _bins(members, others),
    )


def planted(
    scores: Floats, coins: evidence.Flags, delta: float, accounted: float | None
) -> Planted:
    """Return what guessing the canaries by their scores proves."""
    return Planted(evidence.canary_audit(scores, coins, delta, EACH), delta, accounted)


def inversion(
    plain: Floats, masked: Floats, correlation: float, numbers: int, how: How = "formula"
) -> Inversion:
    """Return what the distances of an update's records to the nearest guess say."""
    return Inversion(
        len(plain),
        float((plain <= NEAR).mean()),
        float((masked <= NEAR).mean()),
        float(plain.min()),
        float(masked.min()),
        correlation,
        numbers,
        how,
    )


def judge(found: Findings) -> Verdict:
    """Return the verdict."""
    broken = [s for s in (_over_accounted(found.planted), *_over_claim(found)) if s]
    if broken:
        return Verdict("leaky", tuple(broken))
    leaks = _leaks(found)
    claim = found.claim
    if claim is not None and claim.epsilon <= MEANINGFUL:
        bound = (
            f"differential privacy at {claim.level} level with epsilon {claim.epsilon:.3g} at "
            f"delta {claim.delta:.0e} bounds what anybody can learn of one {_unit(claim)}, "
            "and no attack came beyond that bound"
        )
        return Verdict("bounded", (bound, *(f"within the bound, {s}" for s in leaks)))
    weak: tuple[str, ...] = ()
    if claim is not None:
        weak = (
            f"epsilon {claim.epsilon:.3g} is above {MEANINGFUL:g}: such a promise of "
            "differential privacy bounds little, and is not counted",
        )
    if leaks:
        return Verdict("leaky", (*leaks, *weak))
    return Verdict("no-leak-found", (*_powers(found), *weak))


def most_of(claim: Claim | None) -> float | None:
    """Return the largest AUC that a promise admits, None without one."""
    return None if claim is None else evidence.most_area(claim.epsilon, claim.delta)


def _over_accounted(found: Planted | None) -> str:
    if found is None or found.accounted is None or found.found.epsilon <= found.accounted:
        return ""
    return (
        f"the training promises epsilon {found.accounted:.3g}, and planted records prove at "
        f"least {found.found.epsilon:.3g}: the promise is broken"
    )


def _over_claim(found: Findings) -> list[str]:
    claim = found.claim
    if claim is None:
        return []
    most = evidence.most_area(claim.epsilon, claim.delta)
    return [
        f"the {a.name} reaches an AUC of at least {a.area.low:.3f}, where epsilon "
        f"{claim.epsilon:.3g} admits {most:.3f}: the model was not made as promised, or the "
        "held-out records are of another kind than the dataset's"
        for a in found.attacks
        if a.area.low > most
    ]


def _leaks(found: Findings) -> list[str]:
    """Return a sentence for each attack that told records apart."""
    said = []
    for a in found.attacks:
        if a.area.low > 0.5 + MARGIN:
            said.append(
                f"the {a.name} tells records that were trained on from others: of such a pair "
                f"it picks the right one in {a.area.value:.0%} of cases, at least "
                f"{a.area.low:.0%}; guessing gives 50%"
            )
        elif a.tail.epsilon > TOLERATED:
            said.append(
                f"the {a.name} is sure of some records: its clearest answers are right with "
                f"odds of at least {np.exp(a.tail.epsilon):.1f} to 1"
            )
    p = found.planted
    if p is not None and p.found.epsilon > TOLERATED:
        said.append(
            f"the training remembers single unusual records: {p.found.correct} of "
            f"{p.found.guesses} guesses about planted ones were right, which proves epsilon of "
            f"at least {p.found.epsilon:.2f}"
        )
    return said


def _powers(found: Findings) -> list[str]:
    """Return what would have been found, had it been there."""
    said = []
    if found.attacks:
        least = min(a.least for a in found.attacks)
        weak = "; that is a weak test, ask for more records" if least > POOR else ""
        said.append(
            f"the attacks on real records would have found an AUC from about "
            f"{max(least, 0.5 + MARGIN):.2f} on (0.50 is guessing){weak}"
        )
    if found.planted is not None:
        said.append(
            f"{found.planted.found.planted} planted records could have proved an epsilon of up "
            f"to {found.planted.found.most:.1f}, and proved {found.planted.found.epsilon:.2f}"
        )
    return said


def _unit(claim: Claim) -> str:
    return {"patient": "patient", "client": "hospital"}.get(claim.level, "record")


def _bins(members: Floats, others: Floats) -> tuple[tuple[float, float, float], ...]:
    both = np.concatenate([members, others])
    edges = np.linspace(float(both.min()), float(both.max()) + 1e-9, _BINS + 1)
    shares = [np.histogram(s, edges)[0] / len(s) for s in (members, others)]
    centres = (edges[:-1] + edges[1:]) / 2
    return tuple(
        (float(c), float(m), float(o)) for c, m, o in zip(centres, *shares, strict=True)
    )
