"""A hub that wants one site's metrics out of masked evaluations: no sum of it tells them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from consilia.errors import AuthError, Refused, UpdateRejected, WireError
from consilia.node.evaluating import Predictions
from consilia.node.maskedevaluation import noised, vector
from consilia.node.masking import Masking
from consilia.node.policy import Policy, Request, StudyGrant, decide
from consilia.privacy import masked, ring, secagg, shares
from consilia.privacy.disclosure import Rules
from consilia.stats import summedscores
from consilia.wire.v1 import Dp, Evaluation, Lease, Privacy, Said, Task, Word, decode
from maskedkit import SITES, Peer, peer

STUDY, PLAN, MODEL = "sha256:" + "0" * 64, "sha256:" + "1" * 64, "b3:" + "a" * 64
ASKED = Evaluation(bins=summedscores.BINS)
SECURE = Privacy(aggregation="secure", evaluation=ASKED)
DAY = 86_400.0
Told = Literal["roster", "inbox", "survivors", "consents"]
Kind = Literal["train", "evaluate"]
CASES: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    ("train", "0", SITES[:3]),
    ("evaluate", "e0", SITES),
)


@pytest.fixture
def peers(tmp_path: Path) -> dict[str, Peer]:
    found = {site: peer(site, tmp_path) for site in SITES}
    keys = {site: one.public for site, one in found.items()}
    for one in found.values():
        one.pin(keys, STUDY)
    return found


def numbers(site: str) -> NDArray[np.uint64]:
    return np.full(7, SITES.index(site) + 1, np.uint64)


@dataclass
class Sum:
    """One masked sum of a kind of task, as a hub leads sites through it."""

    peers: dict[str, Peer]
    kind: Kind = "evaluate"
    number: int = 1
    attempt: str = "e0"
    cohort: Sequence[str] = SITES
    said: dict[str, dict[str, bytes]] = field(default_factory=dict)
    noise: dict[str, Dp] = field(default_factory=dict)  # site -> what it is told of it

    def lease(self, site: str) -> Lease:
        task = Task(
            kind=self.kind,
            job="job-1",
            round=self.number,
            study=STUDY,
            study_name="four-hearts",
            plan=PLAN,
            arguments={},
            tags=("cohort",),
            model=MODEL,
            seed=1,
            privacy=msgspec.structs.replace(SECURE, dp=self.noise.get(site)),
            cohort=tuple(self.cohort),
            total=1000,
        )
        return Lease(f"job-1.{self.number}.{self.attempt}.{site}", task, 600.0)

    @property
    def context(self) -> bytes:
        about = MODEL + shares.named(self.noise.get(self.cohort[0]))
        return masked.context(self.lease("hub").id, about, tuple(self.cohort))

    def hear(self, site: str, step: Told, body: bytes, says: str = "") -> None:
        masking, lease = self.peers[site].masking, self.lease(site)
        spoken = masking.hear(lease, Word(lease.id, step, body))
        if says:
            self.said.setdefault(says, {})[site] = decode(spoken.said.payload, Said).body

    def ready(self) -> "Sum":
        """Lead everybody to where the vectors are masked."""
        for site in self.cohort:
            spoken = self.peers[site].masking.begin(self.lease(site))
            self.said.setdefault("keys", {})[site] = decode(spoken.said.payload, Said).body
        roster = secagg.roster(self.context, self.said["keys"])
        for site in self.cohort:
            self.hear(site, "roster", roster, "shares")
        for site, inbox in secagg.inboxes(self.said["shares"]).items():
            self.hear(site, "inbox", inbox)
        return self

    def sent(self, site: str) -> NDArray[np.uint64]:
        body = self.peers[site].masking.mask_numbers(self.lease(site), numbers(site))
        return np.frombuffer(body, "<u8").copy()

    def opened(self, survivors: Sequence[str], total: NDArray[np.uint64]) -> list[int]:
        """Have these sites open a sum, and return it."""
        told = secagg.survivors(self.context, tuple(sorted(survivors)))
        for site in survivors:
            self.hear(site, "survivors", told, "consent")
        consents = secagg.consents(self.said["consent"])
        for site in survivors:
            self.hear(site, "consents", consents, "unmask")
        roster = secagg.roster(self.context, self.said["keys"])
        secagg.unmasker(
            self.context, roster, self.said["shares"], tuple(sorted(survivors)),
            self.said["unmask"],
        ).subtract(total)  # fmt: skip
        return [int(number) for number in total]


def test_a_vector_is_noise_and_the_sum_is_the_sum(peers: dict[str, Peer]) -> None:
    talk = Sum(peers).ready()
    sent = {site: talk.sent(site) for site in SITES}
    assert all((sent[site] > 1 << 32).any() for site in SITES), "masks fill the ring"
    assert talk.opened(SITES, sum(sent.values(), np.zeros(7, np.uint64))) == [10] * 7


def test_sites_that_are_told_of_different_noise_open_no_sum(peers: dict[str, Peer]) -> None:
    """Else the shares of all but one would be too small for what that one has charged."""
    much = Dp("record", 4.0, 1.0, distributed=True)
    little = msgspec.structs.replace(much, noise_multiplier=0.5)
    assert Sum(peers, number=8, noise=dict.fromkeys(SITES, much)).ready()
    victim = SITES[-1]
    told = {**dict.fromkeys(SITES, little), victim: much}
    kinds: tuple[Kind, ...] = ("train", "evaluate")
    for number, kind in enumerate(kinds, 1):
        talk = Sum(peers, kind, number, noise=told)
        with pytest.raises((AuthError, WireError)):
            talk.ready()
        assert victim not in talk.said.get("shares", {})


def test_one_site_more_or_less_gives_no_second_sum(peers: dict[str, Peer]) -> None:
    """The sum of all less that of three would be the fourth's own metrics."""
    first = Sum(peers).ready()
    first.opened(SITES, sum((first.sent(site) for site in SITES), np.zeros(7, np.uint64)))
    again = Sum(peers, number=2).ready()
    three = SITES[:3]
    total = sum((again.sent(site) for site in three), np.zeros(7, np.uint64))
    with pytest.raises(Refused, match="single sites' updates"):
        again.opened(three, total)
    assert "unmask" not in again.said


def test_an_evaluation_and_the_round_that_starts_from_its_model_are_two_sums(
    peers: dict[str, Peer],
) -> None:
    """Their survivors may differ: the one tells nothing of what the other is made of."""
    for kind, attempt, sites in CASES:
        talk = Sum(peers, kind, attempt=attempt).ready()
        total = sum((talk.sent(site) for site in sites), np.zeros(7, np.uint64))
        assert talk.opened(sites, total) == [sum(SITES.index(s) + 1 for s in sites)] * 7


def test_the_masks_are_for_one_vector_and_an_attempt_has_its_own(
    peers: dict[str, Peer],
) -> None:
    first = Sum(peers).ready()
    sent = first.sent(SITES[0])
    with pytest.raises(Refused, match="masked an update of this round already"):
        first.sent(SITES[0])
    second = Sum(peers, attempt="e1").ready()
    difference = second.sent(SITES[0]) - sent
    assert (difference != 0).all() and first.said["keys"] != second.said["keys"]


def test_a_node_put_back_to_an_older_state_masks_nothing_when_the_round_is_over(
    peers: dict[str, Peer], tmp_path: Path
) -> None:
    """A copy of its disk from before it sent: the masks look unused, and are not."""
    talk = Sum(peers).ready()
    one, lease = peers[SITES[0]], talk.lease(SITES[0])
    late = Masking(one.store, one.site, one.key, lambda: time.time() + DAY, lambda n: b"0" * n)
    with pytest.raises(Refused, match="ended long ago"):
        late.mask_numbers(lease, numbers(SITES[0]))
    assert talk.sent(SITES[0]).size == 7  # in its time it may


@pytest.mark.parametrize("count", [1, 2])
def test_a_sum_of_one_or_two_is_refused_before_anything_is_said(
    peers: dict[str, Peer], count: int
) -> None:
    few = Sum(peers, cohort=SITES[:count])
    with pytest.raises(Refused, match="needed 3 at least"):
        peers[SITES[0]].masking.begin(few.lease(SITES[0]))
    allowed = decide(
        _request(SECURE, SITES[:count]), Policy({STUDY: _study()}), date(2026, 11, 1)
    )
    assert any("cannot be masked" in told for told in allowed.objections)


def _study() -> StudyGrant:
    return StudyGrant("four-hearts", frozenset({"cohort"}), date.max, sites=SITES)


def _request(privacy: Privacy, cohort: Sequence[str]) -> Request:
    return Request(
        "evaluate", STUDY, "four-hearts", PLAN, frozenset({"cohort"}), {}, MODEL, 60.0,
        privacy=privacy, cohort=tuple(cohort),
    )  # fmt: skip


def test_noise_in_the_open_or_alone_is_refused() -> None:
    dp = Dp("record", 4.0, 1.0, distributed=True)
    policy = Policy({STUDY: _study()}, dp_required=True)
    for privacy, cohort, reason in (
        (Privacy(dp=dp), (), "a share hides nothing outside"),
        (msgspec.structs.replace(SECURE, dp=Dp("record", 4.0, 1.0)), SITES, "or none"),
        (SECURE, SITES, "must be differentially private"),
    ):
        found = decide(_request(privacy, cohort), policy, date(2026, 11, 1))
        assert any(reason in told for told in found.objections), found.objections


def predictions(cases: int, others: int) -> Predictions:
    targets = np.repeat([[1.0], [0.0]], (cases, others), axis=0)
    return Predictions("probability", np.linspace(0.01, 0.99, cases + others)[:, None],
                       targets, None, None)  # fmt: skip


def test_few_cases_tell_nothing_and_noise_does_not_say_that_they_are_few() -> None:
    with pytest.raises(Refused, match="too small"):
        vector(predictions(4, 60), ASKED, Rules(k=5))
    dp, asked = Dp("record", 4.0, 1.0, distributed=True), Evaluation(bins=50)
    told = noised(predictions(1, 3), asked, dp, 4, lambda n: b"7" * n)
    assert told.size == summedscores.size(50, True)
    for wrong in (Dp("patient", 4.0, 1.0), Dp("record", 4.0, 9.0), Dp("record", 1e-3, 1.0)):
        with pytest.raises(Refused):
            noised(predictions(9, 9), asked, wrong, 4, lambda n: b"7" * n)
    with pytest.raises(Refused):  # all survivors but none could collude
        noised(
            predictions(9, 9), asked, Dp("record", 4.0, 1.0, colluding=3), 4, lambda n: b"7" * n
        )


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_finite_or_too_large_never_becomes_a_number(
    bits: int, value: float
) -> None:
    """Cast to an integer, NaN and infinity would look like some number, and mask well."""
    values = np.array([0.1, value, -0.2])
    out = np.zeros(3, f"u{bits // 8}")
    with pytest.raises(UpdateRejected):
        ring.quantise(values, ring.scale_of(bits, 1.0), 0.5, out, lambda n: b"9" * n)
    if bits == 8 and not np.isfinite(value):
        with pytest.raises(UpdateRejected, match="NaN or infinity"):
            ring.coarse(values, ring.scale_of(8, 1.0), 0.5, out, lambda n: b"9" * n)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_site_that_lies_moves_a_sum_by_no_more_than_the_ring(bits: int) -> None:
    """It can spoil a sum, which nobody sees; no weight gets further than this."""
    rng, top = np.random.default_rng(bits), ring.scale_of(bits, 1.0)
    honest = [rng.uniform(-1, 1, 1000) for _ in range(2)]
    total = rng.integers(0, 1 << bits, 1000).astype(f"u{bits // 8}")  # the liar's vector
    for values in honest:
        out = np.zeros(1000, total.dtype)
        ring.quantise(values, top, 1 / 3, out, rng.bytes)
        np.add(total, out, out=total)
    found = ring.dequantise(total, top)
    assert np.isfinite(found).all() and np.abs(found).max() <= (1 << (bits - 1)) / top
