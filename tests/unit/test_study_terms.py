"""What a study says of itself: in its digest, checked by the hub, met by a node or not."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from consilia.errors import ConfigError, Conflict
from consilia.hub.rest.governance import checked_study
from consilia.node import audit, studies
from consilia.node.config import NodeConfig, parse
from consilia.node.standing import policy_of
from consilia.node.store import Store
from consilia.wire.v1 import Study, decode, encode, study_digest

NOW = 1_790_000_000.0
PLAIN = Study(
    "hearts", "to learn", ("charite", "leuven"), ("cohort",), "Uni", "Art. 9(2)(j)", "EC 17"
)
HERE = replace(PLAIN, residency="EU", retention_days=365)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store.open(tmp_path)
    yield found
    found.close()


def test_new_fields_leave_the_digests_of_studies_that_say_nothing_in_them() -> None:
    """The digest is the one that a release without these fields computes."""
    assert study_digest(PLAIN) == (
        "sha256:f8f81e2511c27e8d6fdd9523c13b4240a90a288091b0a2ab4d01caf7250b19dd"
    )
    assert b"residency" not in encode(PLAIN), "an older node would read other bytes"
    others = {study_digest(s) for s in (PLAIN, HERE, replace(PLAIN, retention_days=365))}
    assert len(others) == 3 and decode(encode(HERE), Study) == HERE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"retention_days": -1}, "retention_days is -1, must be 0 (not said) to 36500"),
        ({"retention_days": 99_999}, "retention_days is 99999"),
        ({"residency": "x" * 4001}, "residency has more than 4000 characters"),
    ],
)
def test_the_hub_takes_no_odd_terms(change: dict[str, object], words: str) -> None:
    assert checked_study(HERE, NOW) == HERE
    with pytest.raises(ConfigError) as caught:
        checked_study(replace(HERE, **change), NOW)
    assert words in str(caught.value)


def settings(folder: Path, regions: str) -> NodeConfig:
    text = f"site: charite\nhub: https://hub:1\nregions: [{regions}]\n"
    (folder / "node.yaml").write_text(text)
    return parse(text)


def test_a_node_takes_part_only_where_it_is_in_the_region(store: Store, tmp_path: Path) -> None:
    studies.offer(store, HERE, NOW)
    for regions in ("", "CH"):
        settings(tmp_path, regions)
        with pytest.raises(Conflict, match=r"'EU'.*not among this site's regions.*node.yaml"):
            studies.accept(store, "hearts", actor="mara", now=NOW)
    assert studies.grants(store) == {}
    config = settings(tmp_path, "DE, EU")
    studies.accept(store, "hearts", actor="mara", now=NOW)
    (grant,) = policy_of(store, config).studies.values()
    assert (grant.residency, policy_of(store, config).regions) == ("EU", ("DE", "EU"))
    assert [line.action for line, _ in audit.every(store)] == ["study.offer", "study.accept"]


def test_regions_are_short_words(tmp_path: Path) -> None:
    for bad in ("''", "' '", f"'{'x' * 81}'", "'a\\u0007b'"):
        with pytest.raises(ConfigError, match="regions: found"):
            settings(tmp_path, bad.replace("'a\\u0007b'", '"a\\u0007b"'))


def test_what_ended_at_the_hub_ends_here(store: Store) -> None:
    """Today is its last day; nothing else is touched, and being told again is nothing new."""
    other, pending = replace(PLAIN, name="lungs"), replace(PLAIN, name="skin")
    for study in (PLAIN, other, pending):
        studies.offer(store, study, NOW)
    for name in ("hearts", "lungs"):
        studies.accept(store, name, actor="mara", now=NOW)
    told = [study_digest(s) for s in (PLAIN, pending, replace(PLAIN, name="unheard-of"))]
    assert studies.end(store, told, NOW) == 1
    assert studies.end(store, told, NOW) == 0
    today = date.fromtimestamp(NOW)
    for name, day, state in (
        ("hearts", today, "accepted"),
        ("hearts", today + timedelta(days=1), "expired"),
        ("lungs", today + timedelta(days=1), "accepted"),
        ("skin", today, "pending"),
    ):
        assert studies.get(store, name, day).state == state
    ends = [line for line, _ in audit.every(store) if line.action == "study.end"]
    assert [(line.actor, line.subject) for line in ends] == [("hub", study_digest(PLAIN))]


def test_the_hub_is_told_what_was_declined_and_not_why(store: Store) -> None:
    studies.offer(store, PLAIN, NOW)
    assert studies.declined(store) == ()
    studies.decline(store, "hearts", actor="mara", now=NOW, reason="no money in it")
    assert studies.declined(store) == (study_digest(PLAIN),)
    assert studies.withdrawn(store) == ()
