"""Who approves a plan: two people, a class that ships with Consilia, a consortium."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.core.chain import Break
from consilia.errors import ConfigError, Conflict, NotFound, Refused, WireError
from consilia.node import approvals, audit, peers, policy, review, studies
from consilia.node.arguments import Interval
from consilia.node.config import NodeConfig
from consilia.node.privacyreport import Wanted, prepared
from consilia.node.store import Store
from consilia.sdk.source import read_plan
from consilia.wire import seal
from consilia.wire.planreview import CONTEXT, PlanReview, to_text
from consilia.wire.v1 import Plan, Study, encode, plan_digest
from nodekit import SITE, make_plan
from staffkit import employ

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
TODAY = date(2026, 11, 21)
PLAN, OTHER = make_plan(), make_plan(("np.float32(args", "2 * np.float32(args"), name="other")
DIGEST = plan_digest(PLAN)
SITES = (SITE, "leuven", "oslo")
STUDY = Study("hearts", "to learn", SITES, ("cohort",))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store.open(tmp_path)
    employ(found, "anna", "ben", "jo")
    offer(found, PLAN)
    yield found
    assert not isinstance(audit.verify(found), Break)
    found.close()


def offer(store: Store, plan: Plan) -> None:
    approvals.offer(store, plan, plan_digest(plan), study="hearts", author="ada", now=NOW)


def settings(store: Store, text: str) -> None:
    head = "site: charite\nhub: https://hub:8444\n"
    (store.path.parent / "node.yaml").write_text(head + text)


# ---- two people ------------------------------------------------------------------------------


def test_two_different_people_approve_on_the_same_terms(store: Store) -> None:
    settings(store, "reviewers_needed: 2")
    bounds = {"lr": Interval(0.1, 0.2)}
    first = approvals.approve(
        store, DIGEST, actor="anna", now=NOW, until=TODAY, arguments=bounds, studies=("hearts",)
    )
    assert first.state == "pending" and [s.reviewer for s in first.signoffs] == ["anna"]
    assert not approvals.grants(store)
    with pytest.raises(
        Conflict, match=r"anna has approved plan .* already; 2 different people"
    ):
        approvals.approve(store, DIGEST, actor="anna", now=NOW)
    with pytest.raises(Conflict, match=r"on the terms .*lr 0.1 to 0.2, for hearts; these"):
        approvals.approve(store, DIGEST, actor="ben", now=NOW, until=TODAY + timedelta(1))
    done = approvals.approve(store, DIGEST, actor="ben", now=NOW + 1, reason="read too")
    assert (done.state, done.signers, done.signoffs) == ("approved", ("anna", "ben"), ())
    grant = approvals.grants(store)[DIGEST]
    assert grant.signers == {"anna", "ben"} and grant.until == TODAY
    assert grant.arguments["lr"] == Interval(0.1, 0.2) and grant.studies == {"hearts"}


def test_a_rejection_forgets_who_had_signed(store: Store) -> None:
    approvals.approve(store, DIGEST, actor="anna", now=NOW, needed=2)
    assert approvals.reject(store, DIGEST, actor="eve", now=NOW, reason="no").signoffs == ()
    again = approvals.approve(store, DIGEST, actor="ben", now=NOW, needed=2)
    assert again.state == "rejected" and len(again.signoffs) == 1
    assert approvals.approve(store, DIGEST, actor="jo", now=NOW, needed=2).state == "approved"


def test_new_terms_leave_the_old_approval_until_the_second_word(store: Store) -> None:
    for name in ("anna", "ben"):
        approvals.approve(store, DIGEST, actor=name, now=NOW, needed=2)
    wider = approvals.approve(
        store, DIGEST, actor="anna", now=NOW, needed=2, until=date(2027, 1, 1)
    )
    assert wider.state == "approved" and wider.until == date.max
    last = approvals.approve(store, DIGEST, actor="ben", now=NOW, needed=2)
    assert last.until == date(2027, 1, 1)


def test_a_name_at_the_console_and_a_login_of_it_are_one_person(store: Store) -> None:
    """Commands write user:anna where the console writes anna."""
    settings(store, "reviewers_needed: 2")
    approvals.approve(store, DIGEST, actor="user:anna", now=NOW)
    with pytest.raises(Conflict, match=r"anna has approved plan .* already"):
        approvals.approve(store, DIGEST, actor="anna", now=NOW)
    assert not approvals.grants(store)
    grants = {DIGEST: policy.PlanGrant("p", signers=frozenset({"anna", "user:anna"}))}
    asked = policy.Request("init", "", "", DIGEST, frozenset(), {}, None, 1.0)
    said = policy.decide(asked, policy.Policy(plans=grants, reviewers_needed=2), TODAY)
    assert "was approved by 1, the policy needs 2" in "; ".join(said.objections)
    needed = policy.ConsortiumReview(2, 1)
    assert not policy.reviewed(frozenset({"user:anna@oslo", "anna@oslo"}), needed)
    assert policy.reviewed(frozenset({"anna@leuven", "anna@oslo"}), needed), "two sites' annas"


def test_a_rule_that_became_stricter_asks_the_old_approvals_too(store: Store) -> None:
    approvals.approve(store, DIGEST, actor="anna", now=NOW)
    grants = approvals.grants(store)
    asked = policy.Request("init", "", "", DIGEST, frozenset(), {}, None, 1.0)
    wanted = Wanted(store.path, DIGEST, "cohort")
    stricter = NodeConfig(SITE, "https://hub:8444", reviewers_needed=2)
    with pytest.raises(Refused, match="was approved by 1, the policy needs 2"):  # at home too
        prepared(store, stricter, wanted, store.path.parent, TODAY)
    for needed, fine in ((1, True), (2, False)):
        under = policy.Policy(plans=grants, reviewers_needed=needed)
        said = "; ".join(policy.decide(asked, under, TODAY).objections)
        assert ("different reviewers" not in said) is fine


# ---- plans that ship with Consilia -----------------------------------------------------------


def test_the_manifest_names_the_examples_as_they_are() -> None:
    for digest, path in review.shipped().items():
        found = plan_digest(read_plan(ROOT / path))
        assert found == digest, f"node/shipped.json: {path} is {found} now"


def test_shipped_plans_are_approved_as_a_class_and_revoked_so(store: Store) -> None:
    plan = read_plan(ROOT / "examples/first_model/tumour.py")
    offer(store, plan)
    (done,) = review.approve_shipped(store, actor="anna", now=NOW, until=TODAY, reason="known")
    assert (done.digest, done.via, done.state) == (plan_digest(plan), "shipped", "approved")
    assert done.until == TODAY and approvals.get(store, DIGEST, TODAY).state == "pending"
    later = read_plan(ROOT / "examples/breast_cancer.py")
    offer(store, later)
    found = review.consider(store, plan_digest(later), NOW + 1)  # as the catalogue does
    assert found is not None and found.state == "approved"
    approvals.revoke(store, plan_digest(later), actor="ben", now=NOW, reason="not this one")
    assert review.consider(store, plan_digest(later), NOW + 2) is None
    (gone,) = review.revoke_shipped(store, actor="ben", now=NOW, reason="done")
    assert gone.digest == plan_digest(plan) and not approvals.grants(store)
    with pytest.raises(Conflict, match="not approved as a class"):
        review.revoke_shipped(store, actor="ben", now=NOW, reason="again")


def test_a_class_too_takes_as_many_people(store: Store) -> None:
    offer(store, read_plan(ROOT / "examples/first_model/tumour.py"))
    assert review.approve_shipped(store, actor="anna", now=NOW, needed=2) == ()
    assert review.shipped_class(store) is None
    with pytest.raises(Conflict, match="anna has approved class shipped already"):
        review.approve_shipped(store, actor="anna", now=NOW, needed=2)
    (done,) = review.approve_shipped(store, actor="ben", now=NOW, needed=2)
    assert done.signers == ("anna", "ben")


# ---- a consortium's review -------------------------------------------------------------------


KEYS = {site: Ed25519PrivateKey.generate() for site in SITES}


def accepted(store: Store) -> None:
    peers.told(store, {s: k.public_key().public_bytes_raw() for s, k in KEYS.items()}, NOW)
    studies.offer(store, STUDY, NOW)
    studies.accept(store, "hearts", actor="m", now=NOW)


def signed(site: str, reviewer: str = "anna", digest: str = DIGEST, key: str = "") -> str:
    body = encode(PlanReview(digest, reviewer, "2026-11-20", "sound"))
    return to_text(seal.seal(CONTEXT, site, body, KEYS[key or site]))


def test_enough_reviewers_of_enough_sites_approve(store: Store) -> None:
    settings(store, "consortium_review: {reviewers: 3, sites: 2}")
    accepted(store)
    assert review.take(store, signed("leuven"), actor="m", now=NOW).state == "pending"
    review.take(store, signed("leuven", "ben"), actor="m", now=NOW)
    review.take(store, signed("leuven", "cleo"), actor="m", now=NOW)
    assert approvals.get(store, DIGEST, TODAY).state == "pending", "one site is not two"
    done = review.take(store, signed("oslo", "dora"), actor="m", now=NOW)
    assert (done.state, done.via) == ("approved", "consortium")
    grant = approvals.grants(store)[DIGEST]
    assert "dora@oslo" in grant.signers and len(grant.signers) == 4
    asked = policy.Request("init", "", "", DIGEST, frozenset(), {}, None, 1.0)
    for needed in (None, policy.ConsortiumReview(5, 2), policy.ConsortiumReview(3, 3)):
        under = policy.Policy(plans={DIGEST: grant}, consortium=needed)
        assert any("consortium" in o for o in policy.decide(asked, under, TODAY).objections), (
            "an approval outlived the policy that accepted it"
        )


def test_a_sites_own_reviewer_signs_for_others(store: Store) -> None:
    accepted(store)
    line = review.endorse(
        store, DIGEST, site=SITE, key=KEYS[SITE], reviewer="mara", actor="user:it", now=NOW,
        reason="read",
    )  # fmt: skip
    signed_by = [x for x, _ in audit.every(store) if x.action == "plan.endorse"][-1]
    assert (signed_by.actor, signed_by.detail) == ("user:it", "mara: read")
    assert review.reviewers(store, DIGEST) == (f"mara@{SITE}",)
    assert review.take(store, f"  {line}\n", actor="m", now=NOW).state == "pending"


FORGED = {
    "another site's key": (signed("leuven", key="oslo"), Refused, "not signed with a key"),
    "a site that was not invited": (
        to_text(seal.seal(CONTEXT, "rome", encode(PlanReview(DIGEST, "x", "")), KEYS["oslo"])),
        Refused,
        "not signed with a key",
    ),
    "an envelope for something else": (
        to_text(seal.seal("report", "oslo", encode(PlanReview(DIGEST, "x", "")), KEYS["oslo"])),
        Refused,
        "not signed with a key",
    ),
    "of a plan that is not here": (signed("oslo", digest="sha256:" + "0" * 64), NotFound, "no"),
    "a name with two sites": (signed("oslo", "anna@leuven"), ConfigError, "without @"),
    "cut off": (signed("oslo")[:-7], WireError, "."),
    "no review": ("hello", WireError, "needed one line that begins with"),
}


@pytest.mark.parametrize("how", FORGED)
def test_forged_and_replayed_reviews_do_not_count(store: Store, how: str) -> None:
    settings(store, "consortium_review: {reviewers: 1, sites: 1}")
    accepted(store)
    text, error, words = FORGED[how]
    with pytest.raises(error, match=words):
        review.take(store, text, actor="m", now=NOW)
    assert approvals.get(store, DIGEST, TODAY).state == "pending"
    if error is not WireError:
        assert [line.outcome for line, _ in audit.every(store)][-1] == "refused"


def test_a_review_of_one_plan_is_none_of_another_and_counts_once(store: Store) -> None:
    settings(store, "consortium_review: {reviewers: 2, sites: 1}")
    accepted(store)
    offer(store, OTHER)
    for _ in range(3):
        review.take(store, signed("oslo"), actor="m", now=NOW)
    assert approvals.list_plans(store, TODAY, "approved") == []
    assert json.loads(json.dumps(review.reviewers(store, plan_digest(OTHER)))) == []
