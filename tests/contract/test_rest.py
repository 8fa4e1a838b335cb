"""The people's API over real TLS, against a whole hub with a real database.

Who may do what is tested in test_rights, from the OpenAPI document.
"""

import re
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from restkit import CONFIG, RestHub, plan, put_version, running_hub, study, weights

from consilia import errors
from consilia.errors import (
    AuthError,
    ConfigError,
    Conflict,
    ConsiliaError,
    NotFound,
    PlanError,
    Refused,
    TransferError,
    UpdateRejected,
    WireError,
)
from consilia.hub import atrest
from consilia.hub.blobs import DiskBlobs
from consilia.hub.config import Directory
from consilia.hub.modelversions import Version
from consilia.hub.people import rights
from consilia.hub.rest.api import HEADERS
from consilia.sdk.client import Client
from consilia.web.problems import STATUS
from consilia.wire import frames
from consilia.wire.people import Experiment, ProblemView
from consilia.wire.token import decode_token
from consilia.wire.v1 import MAX_PLAN, plan_digest, study_digest

PEOPLE = {
    "ada": "researcher",
    "bob": "researcher",
    "rob": "reviewer",
    "dan": "downstream",
    "eve": "auditor",
}


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RestHub, Version]]:
    directory = tmp_path_factory.mktemp("rest") / "hub"
    atrest.init(directory, CONFIG)
    version = put_version(directory, "ada", weights())
    with running_hub(directory) as hub:
        for name, role in PEOPLE.items():
            hub.add(name, role)
        yield hub, version


@pytest.fixture
def hub(seeded: tuple[RestHub, Version]) -> RestHub:
    return seeded[0]


@pytest.fixture
def version(seeded: tuple[RestHub, Version]) -> Version:
    return seeded[1]


@pytest.fixture
def ada(hub: RestHub) -> Iterator[Client]:
    with hub.client("ada") as client:
        yield client


@pytest.fixture
def bob(hub: RestHub) -> Iterator[Client]:
    with hub.client("bob") as client:
        yield client


@pytest.fixture
def operator(hub: RestHub) -> Iterator[Client]:
    with hub.client("operator") as client:
        yield client


def submitted(client: Client, name: str) -> str:
    """Submit a study of that name with a plan, and return the plan's digest."""
    client.create_study(study(name))
    client.submit_study(name)
    return client.submit_plan(name, plan(description=name)).digest


# ---- who asks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Basic b3BlcmF0b3I6eA==", "Bearer cst_wrong", "Bearer \xe9"],
)
def test_what_is_no_token_opens_nothing(hub: RestHub, header: str) -> None:
    with hub.http() as client:
        answer = client.get(
            "/api/v1/whoami", headers={b"Authorization": header.encode("latin-1")}
        )
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_in_the_address_opens_nothing(hub: RestHub) -> None:
    with hub.http() as client:
        answer = client.get("/api/v1/whoami", params={"token": hub.tokens["operator"]})
    assert answer.status_code == 401


def test_a_revoked_token_fails_at_once(hub: RestHub, operator: Client) -> None:
    made = operator.new_token("carl", "researcher")
    hub.tokens["carl"] = made.secret or ""
    with hub.client("carl") as carl:
        assert carl.whoami().name == "carl"
        assert made.id in {t.id for t in operator.tokens()}
        operator.revoke_token(made.id)
        with pytest.raises(AuthError, match="unknown, expired or revoked"):
            carl.whoami()
    assert made.id not in {t.id for t in operator.tokens()}
    assert ("user:operator", made.id) in hub.lines("token.revoke")


def test_an_expired_token_fails(hub: RestHub, operator: Client) -> None:
    hub.tokens["dora"] = operator.new_token("dora", "auditor", days=1).secret or ""
    with hub.client("dora") as dora:
        assert dora.whoami().role == "auditor"
        hub.clock.shift = 86_401
        try:
            with pytest.raises(AuthError):
                dora.whoami()
        finally:
            hub.clock.shift = 0


def test_secrets_are_shown_once_and_logged_never(hub: RestHub, operator: Client) -> None:
    made = operator.new_token("frank", "auditor")
    invite = operator.invite("west")
    assert made.secret is not None
    assert [t.secret for t in operator.tokens()] == [None] * len(operator.tokens())
    text = hub.log.getvalue()
    assert '"path": "/api/v1/tokens"' in text, "requests are logged at level debug"
    assert made.secret not in text
    assert invite.token not in text
    assert decode_token(invite.token).secret not in text


def test_bad_tokens_cannot_be_made(operator: Client) -> None:
    for name, role, days in (("x", "root", 1), ("", "auditor", 1), ("x", "auditor", 0)):
        with pytest.raises(ConfigError):
            operator.new_token(name, role, days)


# ---- requests and answers --------------------------------------------------------------------


def test_every_answer_carries_the_security_headers(hub: RestHub) -> None:
    with hub.http("ada") as client:
        for path in ("/healthz", "/api/v1/whoami", "/api/v1/tokens", "/api/v1/nowhere"):
            headers = client.get(path).headers
            assert {k: headers.get(k) for k in HEADERS} == dict(HEADERS)
            assert "server" not in headers
            assert headers["strict-transport-security"] == "max-age=31536000"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"name": "a", "rol": "auditor"}', "unknown key 'rol'; did you mean 'role'?"),
        (b'{"name": "a", "role": "auditor", "days": "5"}', "days: Expected `int`, got `str`"),
        (b'{"name": "a"}', "missing required field `role`"),
        (b"[]", "Expected `object`, got `array`"),
        (b"", "Expected `object`, got `null`"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_wrong_body_is_explained(hub: RestHub, body: bytes, said: str) -> None:
    with hub.http("operator") as client:
        answer = client.post(
            "/api/v1/tokens", content=body, headers={"Content-Type": "application/json"}
        )
    problem = msgspec.json.decode(answer.content, type=ProblemView)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem.status, problem.error) == (400, 400, "ConfigError")
    assert said in problem.detail


def test_unknown_fields_are_found_at_any_depth(hub: RestHub, ada: Client) -> None:
    ada.create_study(study("depth"))
    body = {"study": "depth", "plan": msgspec.to_builtins(plan()) | {"entree": "x:Y"}}
    with hub.http("ada") as client:
        detail = client.post("/api/v1/plans", json=body).json()["detail"]
    assert "unknown key 'entree' in plan; did you mean 'entry'?" in detail


def test_a_form_is_not_a_body(hub: RestHub) -> None:
    with hub.http("operator") as client:
        answer = client.post("/api/v1/tokens", data={"name": "a", "role": "auditor"})
    assert answer.status_code == 400


def test_a_long_body_is_refused(hub: RestHub) -> None:
    with hub.http("ada") as client:
        answer = client.post("/api/v1/studies", content=b" " * (9 << 20))
    assert answer.status_code == 413


def test_a_wait_that_is_no_number_is_none(hub: RestHub, ada: Client) -> None:
    """NaN among the event loop's timers would put them out of order."""
    digest = submitted(ada, "timeless")
    job = ada.start(Experiment(study="timeless", plan=digest, rounds=1))
    seen = int(ada.events(job.id)[-1].seq)
    with hub.http("ada") as client:
        answer = client.get(f"/api/v1/jobs/{job.id}/events?after={seen}&wait=nan", timeout=60)
    assert answer.status_code == 200


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "cursor=%00"])
def test_wrong_pages_are_refused(hub: RestHub, query: str) -> None:
    with hub.http("operator") as client:
        answer = client.get(f"/api/v1/jobs?{query}")
    assert answer.status_code == 400
    assert answer.json()["detail"]


def test_every_deliberate_error_has_a_status() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ConsiliaError)
    }
    assert set(STATUS) == kinds


def test_the_description_has_every_route(hub: RestHub) -> None:
    with hub.http("eve") as client:
        document = client.get("/api/v1/openapi.json").json()
    described = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert described == set(rights.RIGHTS)
    every = [
        o["operationId"] for methods in document["paths"].values() for o in methods.values()
    ]
    assert len(every) == len(set(every)), "generated clients name a method for each"
    body = document["paths"]["/api/v1/jobs"]["post"]["requestBody"]["content"]
    assert body["application/json"]["schema"]["$ref"].endswith("/Experiment")
    schema = document["components"]["schemas"]["Experiment"]
    assert set(schema["required"]) == {"study", "plan", "rounds"}
    assert schema["additionalProperties"] is False


# ---- sites ----------------------------------------------------------------------------------


def test_a_site_is_invited_and_revoked(hub: RestHub, operator: Client) -> None:
    view = operator.invite("north", hours=1)
    token = decode_token(view.token)
    assert token.url == hub.addresses.nodes
    assert token.site == "north"
    context = ssl.create_default_context(cadata=token.ca)
    context.set_alpn_protocols(["consilia-enrol/1"])
    host, port = token.url.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port)), 5) as line,
        context.wrap_socket(line, server_hostname=host) as tls,
    ):
        assert tls.version() == "TLSv1.3"
    assert {s.name: s.state for s in operator.sites()}["north"] == "invited"
    assert operator.revoke_site("north").state == "revoked"
    with pytest.raises(NotFound):
        operator.revoke_site("nowhere")
    with pytest.raises(ConfigError):
        operator.invite("North Hospital")
    assert ("user:operator", "north") in hub.lines("site.invite")
    assert ("user:operator", "north") in hub.lines("site.revoke")


# ---- studies --------------------------------------------------------------------------------


def test_a_study_goes_from_draft_to_closed(hub: RestHub, ada: Client) -> None:
    draft = ada.create_study(study("road", sites=("south", "north", "south"), tags=("b", "a")))
    assert (draft.state, draft.digest, draft.author) == ("draft", None, "ada")
    assert (draft.study.sites, draft.study.tags) == (("north", "south"), ("a", "b"))
    ada.edit_study(study("road", purpose="another"))
    with pytest.raises(Conflict, match="is draft"):
        ada.submit_plan("road", plan())
    locked = ada.submit_study("road")
    assert locked.study.purpose == "another"
    assert (locked.state, locked.digest) == ("submitted", study_digest(locked.study))
    assert locked.sites == {"north": "invited", "south": "invited"}
    with pytest.raises(Conflict):
        ada.edit_study(study("road"))
    with pytest.raises(Conflict):
        ada.submit_study("road")
    assert ada.close_study("road").state == "closed"
    with pytest.raises(Conflict):
        ada.submit_plan("road", plan())
    for action in ("create", "edit", "submit", "close"):
        assert hub.lines(f"study.{action}").count(("user:ada", "road")) == 1


def test_a_submitted_study_is_offered_anew_under_changed_terms(
    hub: RestHub, ada: Client
) -> None:
    terms = ada.create_study(study("changing")).study
    with pytest.raises(Conflict, match="is draft: only a study that is submitted"):
        ada.revise_study(terms)
    ada.submit_study("changing")
    digest = ada.submit_plan("changing", plan()).digest
    job = ada.start(Experiment(study="changing", plan=digest, rounds=1)).id
    longer = replace(terms, until="2099-12-31", purpose="to learn more")
    with pytest.raises(Conflict, match=f"job {job} runs under the terms of today: stop it"):
        ada.revise_study(longer)
    ada.stop(job)
    with pytest.raises(Conflict, match="has these very terms: nothing is changed"):
        ada.revise_study(terms)
    with pytest.raises(ConfigError, match="has no purpose"):
        ada.revise_study(replace(terms, purpose=" "))
    before = ada.study("changing").digest
    view = ada.revise_study(longer)
    assert (view.state, view.study, view.digest) == ("submitted", longer, study_digest(longer))
    assert ada.study("changing") == view
    with pytest.raises(Conflict, match="was started under earlier terms of study 'changing'"):
        ada.resume(job)
    with pytest.raises(Conflict, match="had these very terms before"):
        ada.revise_study(terms)
    with hub.client("operator") as operator:
        (line,) = (v for v in operator.audit() if v.action == "study.revise")
    assert (line.actor, line.subject) == ("user:ada", "changing")
    assert line.detail == (
        f"{before} -> {view.digest} "
        '{"purpose": ["to test", "to learn more"], "until": ["", "2099-12-31"]}'
    )
    ada.close_study("changing")
    with pytest.raises(Conflict, match="is closed"):
        ada.revise_study(replace(longer, until=""))


def test_closing_a_study_stops_its_jobs(ada: Client) -> None:
    digest = submitted(ada, "ending")
    job = ada.start(Experiment(study="ending", plan=digest, rounds=1))
    ada.close_study("ending")
    assert ada.job(job.id).state == "stopped"
    with pytest.raises(ConfigError, match="which is closed"):
        ada.start(Experiment(study="ending", plan=digest, rounds=1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "No Name"}, "study name"),
        ({"purpose": " "}, "has no purpose"),
        ({"purpose": "x" * 4001}, "more than 4000"),
        ({"sites": ()}, "needs 1 to 1000 sites"),
        ({"tags": ()}, "needs 1 to 64 tags"),
        ({"sites": ("../etc",)}, "site name"),
        ({"until": "tomorrow"}, "is not a date"),
        ({"until": "20990101"}, "is not a date"),
        ({"until": "2020-01-01"}, "lies in the past"),
        ({"min_records": -1}, "must be 0 to"),
    ],
)
def test_a_study_that_cannot_be_is_refused(
    ada: Client, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        ada.create_study(study(**{"name": "wrong"} | changes))


def test_a_study_keeps_its_name(hub: RestHub, ada: Client) -> None:
    ada.create_study(study("kept"))
    with pytest.raises(Conflict, match="exists already"):
        ada.create_study(study("kept"))
    with hub.http("ada") as client:
        answer = client.put("/api/v1/studies/kept", json=msgspec.to_builtins(study("other")))
    assert answer.status_code == 400


def test_what_is_anothers_is_not_there(hub: RestHub, ada: Client, bob: Client) -> None:
    digest = submitted(ada, "adas")
    job = ada.start(Experiment(study="adas", plan=digest, rounds=1))
    assert "adas" not in {s.study.name for s in bob.studies()}
    with hub.http("bob") as client:
        for limit in (1, 2, 3):  # no page ends at, and so names, a study that is not shown
            assert "adas" not in client.get(f"/api/v1/studies?limit={limit}").text
    assert digest not in {p.digest for p in bob.plans()}
    assert job.id not in {j.id for j in bob.jobs()}
    trials: tuple[Callable[[Client], object], ...] = (
        lambda c: c.study("adas"),
        lambda c: c.edit_study(study("adas")),
        lambda c: c.submit_study("adas"),
        lambda c: c.close_study("adas"),
        lambda c: c.plans("adas"),
        lambda c: c.plan(digest),
        lambda c: c.submit_plan("adas", plan(name="bobs")),
        lambda c: c.validate(Experiment(study="adas", plan=digest, rounds=1)),
        lambda c: c.start(Experiment(study="adas", plan=digest, rounds=1)),
        lambda c: c.job(job.id),
        lambda c: c.events(job.id),
        lambda c: c.stop(job.id),
        lambda c: c.resume(job.id),
        lambda c: c.change_arguments(job.id, {"lr": 1}),
    )
    for trial in trials:
        with pytest.raises(NotFound):
            trial(bob)
    with hub.client("eve") as eve:
        assert eve.study("adas").author == "ada"
        assert eve.job(job.id).author == "ada"
        with pytest.raises(Refused):
            eve.stop(job.id)
    with hub.client("operator") as operator:
        assert operator.stop(job.id).state == "stopped"


# ---- plans ----------------------------------------------------------------------------------


def test_a_plan_is_offered_and_read_back(hub: RestHub, ada: Client) -> None:
    ada.create_study(study("plans"))
    ada.submit_study("plans")
    offered = plan(files={"plan.py": "from tools import f\nPLAN = f\n", "tools.py": "f = 1\n"})
    view = ada.submit_plan("plans", offered)
    assert view.digest == plan_digest(offered)
    assert ada.plan(view.digest).plan == offered
    assert [(p.digest, p.plan, p.approved) for p in ada.plans("plans")] == [
        (view.digest, None, ())
    ]
    with pytest.raises(Conflict, match="already"):
        ada.submit_plan("plans", offered)
    assert ("user:ada", view.digest) in hub.lines("plan.offer")


def test_a_plan_is_never_run_at_the_hub(ada: Client, tmp_path: Path) -> None:
    ada.create_study(study("inert"))
    ada.submit_study("inert")
    trace = tmp_path / "ran"
    ada.submit_plan("inert", plan(files={"plan.py": f"open({str(trace)!r}, 'w')\nPLAN = 1\n"}))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": {"plan.py": "x = 1\nif:\n"}}, "plan.py line 2: invalid syntax"),
        ({"files": {"plan.py": "x\0"}}, "plan.py"),
        ({"files": {"plan.py": "(" * 5000 + ")" * 5000}}, "plan.py"),
        ({"files": {}}, "1 to 200 files, found 0"),
        ({"files": {"../plan.py": "", "plan.py": ""}}, "'../plan.py' cannot be imported"),
        ({"files": {"/plan.py": ""}}, "'/plan.py' cannot be imported"),
        ({"files": {"a/./plan.py": ""}}, "cannot be imported"),
        ({"files": {"plan.txt": ""}}, "'plan.txt' cannot be imported"),
        ({"files": {"plan.py": "#" * (MAX_PLAN + 1)}}, "at most 1048576 are admitted"),
        ({"entry": "plan"}, "is not module:NAME"),
        ({"entry": "other:PLAN"}, "names no file of the plan; its modules are plan"),
        ({"requirements": ("x @ https://example.org/x.whl",)}, "URLs and markers"),
        ({"name": "a\nb"}, "printable"),
    ],
)
def test_a_plan_that_cannot_load_is_refused(
    ada: Client, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(PlanError, match=re.escape(said)):
        ada.submit_plan("anything", plan(**changes))


# ---- jobs -----------------------------------------------------------------------------------


def test_a_job_is_started_steered_and_followed(hub: RestHub, ada: Client) -> None:
    digest = submitted(ada, "steered")
    experiment = Experiment(study="steered", plan=digest, rounds=2, arguments={"lr": 0.1})
    told = ada.validate(experiment)
    assert told.problems == ()
    assert told.warnings == ("north has never been in touch", "south has never been in touch")
    job = ada.start(experiment)
    same = msgspec.structs.replace(job.experiment, privacy=experiment.privacy)  # resolved
    assert (job.state, same, job.author) == ("waiting", experiment, "ada")
    assert "north has never been in touch" in job.cause
    ada.change_arguments(job.id, {"lr": 0.2})
    stopped = ada.stop(job.id)
    assert (stopped.state, stopped.cause) == ("stopped", "stopped by ada")
    with pytest.raises(Conflict, match="nothing to stop"):
        ada.stop(job.id)
    assert ada.resume(job.id, rounds=3).state == "waiting"
    with pytest.raises(ConfigError, match="rounds is 1"):
        ada.resume(job.id, rounds=1)
    with pytest.raises(ConfigError, match=r"arguments\.x"):
        ada.change_arguments(job.id, {"x": "y" * 5000})
    kinds = [e.type for e in ada.events(job.id)]
    assert kinds == ["Started", "Changed", "Stopped", "Resumed"]
    assert next(j.id for j in ada.jobs()) == job.id
    for action in ("start", "change", "stop", "resume"):
        assert ("user:ada", job.id) in hub.lines(f"job.{action}")
    ada.stop(job.id)


def test_what_is_wrong_with_an_experiment_is_said_at_once(ada: Client) -> None:
    submitted(ada, "checked")
    wrong = Experiment(
        study="checked", plan="sha256:" + "0" * 64, rounds=0, min_sites=9, fraction=2.0
    )
    said = "\n".join(ada.validate(wrong).problems)
    for field in ("rounds", "fraction", "min_sites", "plan"):
        assert f"{field}: found" in said


def test_a_long_poll_answers_at_the_next_event(hub: RestHub, ada: Client) -> None:
    digest = submitted(ada, "watched")
    job = ada.start(Experiment(study="watched", plan=digest, rounds=1))
    seen = ada.events(job.id)[-1].seq

    def stop() -> None:
        with hub.client("ada") as other:
            other.stop(job.id)

    timer = threading.Timer(0.3, stop)
    timer.start()
    begun = time.monotonic()
    found = ada.events(job.id, after=seen, wait=30)
    took = time.monotonic() - begun
    timer.join()
    assert [e.type for e in found] == ["Stopped"]
    assert 0.2 < took < 20
    begun = time.monotonic()
    assert ada.events(job.id, after=found[-1].seq, wait=0.3) == []
    assert time.monotonic() - begun < 20


def test_nobody_starts_from_a_frame_that_is_not_theirs(
    ada: Client, bob: Client, version: Version, tmp_path: Path
) -> None:
    frames.write(tmp_path / "frame", weights(5))
    uploaded = ada.upload_frame(tmp_path / "frame").digest
    digest = submitted(bob, "bobs-own")
    for base in (version.id, version.digest, uploaded):
        with pytest.raises(NotFound, match="of yours"):
            bob.start(Experiment(study="bobs-own", plan=digest, rounds=1, base=base))
    mine = submitted(ada, "adas-own")
    for base in (version.id, version.digest, uploaded):
        job = ada.start(Experiment(study="adas-own", plan=mine, rounds=1, base=base))
        assert ada.stop(job.id).state == "stopped"


# ---- models and frames -----------------------------------------------------------------------


def test_a_model_is_downloaded_verified(
    hub: RestHub, ada: Client, version: Version, tmp_path: Path
) -> None:
    assert version.id in {m.id for m in ada.model_versions(version.job)}
    view = ada.download_model(version.id, tmp_path / "model")
    assert (view.digest, view.metrics, view.sites) == (
        version.digest,
        {"loss": 0.5},
        ("north", "south"),
    )
    found = frames.read(tmp_path / "model")
    assert {k: v.tobytes() for k, v in found.items()} == {
        k: v.tobytes() for k, v in weights().items()
    }
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert ("user:ada", version.id) in hub.lines("model.read")


def test_a_model_is_its_studys(hub: RestHub, bob: Client, version: Version) -> None:
    assert bob.model_versions() == []
    with pytest.raises(NotFound):
        bob.model(version.id)
    with hub.http("bob") as client:
        assert client.get(f"/api/v1/models/{version.id}/frame").status_code == 404
    with hub.client("eve") as eve:
        assert eve.model(version.id).digest == version.digest


def test_ranges_of_a_frame(hub: RestHub, version: Version) -> None:
    path = f"/api/v1/models/{version.id}/frame"
    with hub.http("ada") as client:
        whole = client.get(path).content
        assert len(whole) == version.bytes
        part = client.get(path, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
        rest = client.get(path, headers={"Range": "bytes=4000-"})
        assert rest.content == whole[4000:]
        late = client.get(path, headers={"Range": f"bytes={len(whole)}-"})
        assert late.status_code == 416


def test_a_damaged_model_never_reaches_its_path(tmp_path: Path) -> None:
    directory = tmp_path / "hub"
    atrest.init(directory, CONFIG)
    version = put_version(directory, "ada", weights())
    blob = directory / "blobs" / version.digest.replace(":", "-")
    damaged = bytearray(blob.read_bytes())
    damaged[-100] ^= 1
    blob.write_bytes(damaged)
    with running_hub(directory) as hub, hub.client("operator") as client:
        with pytest.raises(WireError, match="does not match its digest"):
            client.download_model(version.id, tmp_path / "model")
        assert not list(tmp_path.glob("model*"))


def test_a_frame_is_uploaded(hub: RestHub, ada: Client, tmp_path: Path) -> None:
    header = frames.write(tmp_path / "frame", weights(7, size=50_000))
    view = ada.upload_frame(tmp_path / "frame")
    assert (view.digest, view.bytes) == (header.digest, header.total_bytes)
    assert ada.upload_frame(tmp_path / "frame") == view
    assert ("user:ada", header.digest) in hub.lines("frame.upload")


def test_what_is_no_sound_frame_is_refused(hub: RestHub, ada: Client, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    nan = weights(1)
    nan["w"][3] = np.nan
    header = frames.write(good, weights(9))
    frames.write(bad, nan, check_finite=False)
    with pytest.raises(UpdateRejected, match="NaN or infinity"):
        ada.upload_frame(bad)
    body = bytearray(good.read_bytes())
    body[-200] ^= 1
    bad.write_bytes(body)
    with pytest.raises(WireError, match="does not match its digest"):
        ada.upload_frame(bad)
    bad.write_bytes(b"no frame at all")
    with pytest.raises(WireError, match="not a tensor frame"):
        ada.upload_frame(bad)
    bad.write_bytes(good.read_bytes()[:-64])
    with pytest.raises(ConsiliaError):
        ada.upload_frame(bad)
    frames.write(bad, weights(9), unchanged={header.entries[0].digest})
    with pytest.raises(WireError, match="must hold all its tensors"):
        ada.upload_frame(bad)
    frames.write(bad, weights(9, size=300_000))
    with pytest.raises(ConsiliaError, match=r"at most 1048576|limit 1048576"):
        ada.upload_frame(bad)
    assert DiskBlobs(hub.directory).spools() == {}


def test_an_endless_frame_is_cut_off(hub: RestHub) -> None:
    def endless() -> Iterator[bytes]:
        yield frames.MAGIC + (1 << 31).to_bytes(4, "little")
        for _ in range(64):
            yield bytes(1 << 20)

    with hub.http("ada") as client:
        try:
            answer = client.put("/api/v1/frames", content=endless())
        except httpx.TransportError:
            pass  # the hub answered and closed while we were still sending
        else:
            assert answer.status_code == 400
    assert DiskBlobs(hub.directory).spools() == {}


# ---- audit, health, figures ------------------------------------------------------------------


def test_the_trail_is_read_in_pages(operator: Client) -> None:
    lines = list(operator.audit())
    assert [v.seq for v in lines] == list(range(1, len(lines) + 1))
    assert [v.seq for v in operator.audit(after=2, limit=3)] == [3, 4, 5]
    verdict = operator.verify_audit()
    assert (verdict.intact, verdict.head) == (True, list(operator.audit())[-1].digest)


def test_a_changed_line_is_found(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub, hub.client("operator") as client:
        client.invite("north")
        client.invite("south")
        with sqlite3.connect(tmp_path / "hub" / "hub.sqlite") as db:
            db.execute("UPDATE audit SET subject = 'elsewhere' WHERE seq = 2")
        db.close()
        verdict = client.verify_audit()
    assert (verdict.intact, verdict.broken_at) == (False, 2)
    assert "changed" in verdict.reason


def test_figures_are_there_and_documented(hub: RestHub) -> None:
    with hub.http("eve") as client:
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = dict(re.findall(r"^(consilia_\w+)(?:\{.*\})? ([0-9.e+-]+)$", answer.text, re.M))
    assert float(found["consilia_journal_fsync_seconds_count"]) > 0
    assert 1e7 < float(found["consilia_resident_bytes"]) < 1e10
    assert float(found["consilia_disk_free_bytes"]) > 0
    assert float(found["consilia_sites_online"]) == 0
    names = set(re.findall(r"^# TYPE (consilia_\w+)", answer.text, re.M))
    text = (Path(__file__).parents[2] / "docs/reference/hub-config.md").read_text("utf-8")
    assert [n for n in names if n not in text and not n.endswith("_created")] == []


def test_not_ready_while_the_database_cannot_be_written(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub, hub.http() as client:
        client.timeout = httpx.Timeout(20)
        assert client.get("/readyz").json()["status"] == "ready"
        time.sleep(1.1)  # an answer is kept for a second
        db = sqlite3.connect(tmp_path / "hub" / "hub.sqlite")
        try:
            db.execute("BEGIN IMMEDIATE")
            answer = client.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["database"] == "failed"
            assert client.get("/healthz").status_code == 200
        finally:
            db.rollback()
            db.close()


def test_one_process_per_directory(hub: RestHub) -> None:
    with pytest.raises(Conflict, match="works on the hub"), atrest.at_rest(hub.directory):
        pass
    assert Directory(hub.directory).addresses.exists()


def test_only_tls_1_3_is_spoken(hub: RestHub) -> None:
    context = ssl.create_default_context(cadata=hub.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    port = int(hub.addresses.people.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), 5) as line,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(line, server_hostname="127.0.0.1")


def test_a_hub_that_is_away_is_explained(tmp_path: Path) -> None:
    with running_hub(tmp_path / "hub") as hub:
        slept: list[float] = []
        client = hub.client("operator", sleep=slept.append)
        assert client.whoami().role == "operator"
    with client, pytest.raises(TransferError, match="`consilia hub serve` runs"):
        client.whoami()
    assert len(slept) == 3
