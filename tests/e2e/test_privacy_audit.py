"""A report from a researcher's request to the PDF at a hospital, as the how-to has it."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (extra: torch)")
pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: sklearn)")
pytest.importorskip("fpdf", reason="fpdf2 is not installed (extra: report)")

from cluster import federation
from test_docs import ROOT, _commands

import privacykit as kit
from consilia.errors import NotFound

EXPERIMENT = "study: first\nplan: tumour.py\nrounds: 1\n"
QUICK = ("--references", "2", "--canaries", "0")


@pytest.mark.slow
def test_a_request_is_answered_at_a_site_as_the_page_tells(tmp_path: Path) -> None:
    ask, answer = _commands(ROOT / "docs/how-to/read-a-privacy-report.md")
    (tmp_path / "tumour.py").write_text(kit.SOURCE)
    (tmp_path / "heart.yaml").write_text(EXPERIMENT)
    here, _ = kit.cohort(tmp_path, 120)
    tables = {site: Path(here.path) for site in ("county", "university")}
    with federation(tmp_path, tables, "cancer") as cluster:
        cluster.cli(
            "study", "create", "first", "--purpose", "a test", "--tag", "cancer",
            "--site", "county", "--site", "university",
        )  # fmt: skip
        cluster.cli("study", "submit", "first")
        digest = cluster.json("plan", "submit", "tumour.py", "--study", "first")["digest"]
        for site in tables:
            cluster.decide(site, "first", digest)
        job = cluster.json("experiment", "run", "heart.yaml", "--follow")
        asked = cluster.json(*_words(ask, {"job-0123456789abcdef": job["id"]}))
        assert asked["model"] == f"{job['id']}.1"
        words = _words(answer, {"hf": "table", "report": str(tmp_path / "report")})
        done = cluster.run(*words, "--dir", cluster.node("county"), *QUICK)
        assert done.returncode in (0, 1), done.stderr
        assert f"ada asks about {job['id']}.1, trained by plan {digest}" in done.stderr
        fetched = cluster.run(
            "privacy", "audit", job["id"], "--dataset", "nowhere", "--out", tmp_path / "none",
            "--dir", cluster.node("county"),
        )  # fmt: skip
        assert fetched.returncode == NotFound.exit_code and "nowhere" in fetched.stderr
    subject = json.loads((tmp_path / "report" / "report.json").read_text())["subject"]
    assert subject["model"] == f"{job['id']}.1" and subject["model_digest"] == asked["digest"]
    assert (subject["plan_digest"], subject["rounds"]) == (digest, 1)
    assert (tmp_path / "report" / "report.pdf").read_bytes()[:5] == b"%PDF-"


def _words(command: str, here: dict[str, str]) -> list[str]:
    """Return a command's words with names of the page replaced by names of this run."""
    first, *words = command.split()
    assert first == "consilia"
    return [here.get(word, word) for word in words]
