"""What a training task tells: by which settings, what is counted, and what is written down."""

import os
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consilia.errors import ConfigError
from consilia.node import audit, config
from consilia.node.config import Disclosure, NodeConfig
from consilia.node.numbers import Numbers, rules, words_of
from consilia.node.release import Release
from consilia.node.store import Store
from consilia.wire import seal
from consilia.wire.v1 import (
    Advertisement,
    OfferedDataset,
    Plan,
    Progress,
    Report,
    Sealed,
    Task,
    encode,
)

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PLAN = "sha256:" + "7" * 64
TASK = Task("train", "j", 1, "s", "hearts", PLAN, {}, ("t",), "m", 1)
DAY, NEXT = date(2026, 3, 1), date(2026, 3, 2)
SOURCE = (
    'def train(w, d, a, c):\n    c.progress(0.5, val_loss=1.0)\n    return {"roc.auc": 0.5}'
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store.open(tmp_path)
    with found.write() as tx:
        tx.execute(
            "INSERT INTO plans VALUES (?, 'p', ?, '', 'approved', 0, '', '', 0, 0, '', '{}', "
            "'[]')",
            (PLAN, encode(Plan("p", {"plan.py": SOURCE}, "plan:PLAN"))),
        )
    yield found
    found.close()


def test_names_are_words_of_the_source_or_of_the_framework(store: Store) -> None:
    names = ("val_loss", "roc.auc", "loss", "score", "received_val_loss", "val_loss_records")
    metrics = {**dict.fromkeys(names, 50.0), "age_of_patient_7": 71.0, "roc_auc": 1.0}
    told = Numbers(store, Disclosure()).result(
        TASK, metrics, dataset="d", records=100, today=DAY
    )
    assert set(told.metrics) == set(names)
    assert "age_of_patient_7" in told.note and "roc_auc" in told.note
    assert words_of("f'auc_{c}'") == {"f", "auc_", "c"}


def test_an_unknown_plan_tells_only_what_the_framework_makes(store: Store) -> None:
    other = msgspec.structs.replace(TASK, plan="sha256:" + "8" * 64)
    out = Numbers(store, Disclosure())
    metrics = {"loss": 0.5, "val_loss": 1.0}
    told = out.result(other, metrics, dataset="d", records=100, today=DAY)
    assert told.metrics == {"loss": 0.5}


def released(out: Numbers, store: Store, dataset: str = "d", day: date = DAY) -> bool:
    told = out.result(TASK, {"loss": 0.5}, dataset=dataset, records=100, today=day)
    with store.write() as tx:
        out.count(tx, told)
    return bool(told.metrics)


def test_the_days_limit_holds_per_dataset_and_over_a_restart(store: Store) -> None:
    settings = Disclosure(metrics_per_day=3)
    out = Numbers(store, settings)
    assert [released(out, store) for _ in range(2)] == [True, True]
    again = Numbers(store, settings)
    assert [released(again, store) for _ in range(3)] == [True, False, False]
    assert released(again, store, "other") and released(again, store, day=NEXT)
    assert not released(Numbers(store, settings), store)
    assert not released(Numbers(store, Disclosure(metrics_per_day=0)), store, "third")


def release(store: Store, folder: Path, **settings: object) -> Release:
    chosen = msgspec.convert(settings, Disclosure)
    site = NodeConfig("charite", "https://hub:1", disclosure=chosen)
    return Release(store, folder / "outbox", site, KEY, time.time, os.urandom)


def opened(sealed: Sealed) -> Progress:
    body = seal.open_sealed(sealed, sealed.context, KEY.public_key().public_bytes_raw())
    report = msgspec.msgpack.decode(body, type=Report)
    assert isinstance(report, Progress)
    return report


def test_progress_is_a_step_and_no_metric(store: Store, tmp_path: Path) -> None:
    door = release(store, tmp_path)
    said = [opened(door.progress("l", f, {"loss": 0.1}, TASK, 100)) for f in (0.11, 0.07, 0.99)]
    assert [(s.fraction, s.metrics) for s in said] == [(0.1, {}), (0.1, {}), (0.95, {})]
    assert audit.head(store)[0] == 0


def test_progress_metrics_have_one_line_a_task(store: Store, tmp_path: Path) -> None:
    door = release(store, tmp_path, progress_metrics=True, progress_per_task=2)
    metrics = {"val_loss": 0.123456, "who": 7.0}
    said = [opened(door.progress("l", 0.5, metrics, TASK, 100)).metrics for _ in range(4)]
    assert said == [{"val_loss": 0.123}] * 2 + [{}] * 2
    assert opened(door.progress("l2", 0.5, metrics)).metrics == {}, "of no known task"
    (line,) = [line for line, _ in audit.every(store)]
    assert (line.action, line.subject) == ("release.progress", "l")
    assert "val_loss" in line.detail and "who" not in line.detail and "0.12" not in line.detail


def test_advertised_counts_below_k_are_none(store: Store, tmp_path: Path) -> None:
    door = release(store, tmp_path, k=10)
    offers = tuple(OfferedDataset(f"d{n}", ("t",), n) for n in (0, 5, 9, 14, 120))
    sealed = door.advertisement(Advertisement("1", offers))
    body = seal.open_sealed(sealed, sealed.context, KEY.public_key().public_bytes_raw())
    told = msgspec.msgpack.decode(body, type=Advertisement)
    assert [d.records for d in told.datasets] == [0, 0, 0, 10, 120]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{k: 2}", "disclosure.k: found 2, needed 3 to 1000"),
        ("{k: .nan}", "disclosure.k"),
        ("{metrics: some}", "disclosure.metrics"),
        ("{metric_digits: 0}", "disclosure.metric_digits: found 0"),
        ("{answers: 5000}", "disclosure.answers: found 5000"),
        ("{kk: 5}", "unknown key 'kk' in disclosure; did you mean 'k'"),
    ],
)
def test_mistakes_in_the_section_are_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(f"site: a\nhub: https://h:1\ndisclosure: {text}")
    assert says in str(caught.value)


def test_the_section_and_its_presets() -> None:
    base = "site: a\nhub: https://h:1\ndisclosure: "
    careful = config.parse(base + "{}").disclosure
    assert (careful.k, careful.metrics, careful.progress_metrics) == (5, "rounded", False)
    for k in (3, 5, 8, 10):
        assert rules(config.parse(base + f"{{k: {k}}}").disclosure).k == k
    assert rules(Disclosure(k=5), study_k=8).k == 8 and rules(Disclosure(k=5), study_k=3).k == 5


def test_every_key_of_the_section_is_documented() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "node-config.md"
    text = page.read_text("utf-8")
    assert [n for n in Disclosure.__struct_fields__ if f"| `{n}` |" not in text] == []
