"""Messages by their golden bytes, join tokens, problems, and the two small parsers."""

import contextlib
import json
import ssl
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consilia import errors
from consilia.errors import AuthError, ConfigError, StorageError, TransferError, WireError
from consilia.hub.blobhttp import MAX_HEAD, parse, parse_range
from consilia.wire import hello, v1, worker
from consilia.wire.problem import error_of, problem
from consilia.wire.token import JoinToken, decode_token, encode_token, split_url

VECTORS = Path(__file__).parent.parent / "vectors"
TASK = v1.Task(
    kind="train",
    job="job-1",
    round=3,
    study="sha256:" + "a" * 64,
    study_name="hearts",
    plan="sha256:" + "b" * 64,
    arguments={"lr": 0.5, "epochs": 2, "nesterov": True, "mode": "fast"},
    tags=("cardiology",),
    model="b3:" + "c" * 64,
    seed=42,
)
STUDY = v1.Study("hearts", "predict", ("north", "south"), ("cardiology",), min_records=50)
MESSAGES: dict[str, msgspec.Struct] = {
    "plan": v1.Plan("p", {"p.py": "PLAN = 1\n"}, "p:PLAN", ("numpy>=2",), "text"),
    "study": STUDY,
    "task": TASK,
    "lease": v1.Lease("job-1.3.0.north", TASK, 600.0),
    "orders": v1.Orders((v1.Lease("l", TASK, 1.5),), ("old",), 7),
    "orders-empty": v1.Orders(),
    "catalogue": v1.Catalogue(2, (STUDY,), (v1.PlanEntry("sha256:d", "p", "hearts"),)),
    "verdict": v1.Verdict(False, "shape"),
    "enrol": v1.Enrol("north", "secret", b"csr", bytes(32)),
    "enrolled": v1.Enrolled(b"pem", b"ca", bytes(32)),
    "renew": v1.Renew(b"csr"),
    "poll": v1.Poll("session", ("l1", "l2"), 7, 20.0),
    "advertisement": v1.Advertisement(
        "0.1.0",
        (v1.OfferedDataset("d", ("t",), 95, {"age": "number"}),),
        ("s",),
        ("p",),
        "h",
        9,
    ),
    "mock-twin": v1.OfferedDataset(
        "d",
        ("t",),
        95,
        {"age": "int64", "sex": "category"},
        v1.MockTwin(
            (
                v1.MockColumn(
                    "age", "int64", "a", start=40.0, width=20.0, counts=(50, 40), absent=5
                ),
                v1.MockColumn("sex", "category", levels={"F": 45, "M": 50}),
                v1.MockColumn("id", "str", role="patient"),
            )
        ),
    ),
    "loaded-twin": v1.OfferedDataset(
        "d",
        ("t",),
        95,
        {"age": "int64"},
        v1.MockTwin((v1.MockColumn("age", "int64", "a", levels={"50": 45}),)),
        (
            v1.LoadedTwin(
                "hearts", v1.MockTwin((v1.MockColumn("age", "float64", "mo", absent=5),))
            ),
        ),
    ),
    "progress": v1.Progress("l", 0.5, {"loss": 0.25}),
    "result": v1.Result("l", "job-1", 3, "b3:e", 99, {"loss": 0.25}, 2.0),
    "failed": v1.Failed("l", "not-finite"),
    "declined": v1.Declined("l", "cohort"),
    "sealed": v1.Sealed("report", "north", b"payload", bytes(64)),
    "problem": v1.Problem("NotFound", "no such plan"),
    "privacy-shares": v1.Privacy(
        "secure",
        16,
        dp=v1.Dp(
            "client", 1.5, 2.0, distributed=True, colluding=2, adaptive=v1.Adaptive(0.9, 0.1)
        ),
    ),
    "privacy-compressed": v1.Privacy(compression=v1.Compression(16, 0.05, True)),
}


def golden() -> dict[str, str]:
    text = (VECTORS / "messages-v1.json").read_text()
    found: dict[str, str] = json.loads(text)
    return found


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_messages(name: str) -> None:
    """The bytes of version 1, as released. If this fails, the wire has changed."""
    body = bytes.fromhex(golden()[name])
    message = MESSAGES[name]
    assert v1.encode(message) == body
    assert v1.decode(body, type(message)) == message


def test_reports_are_told_apart() -> None:
    for name in ("progress", "result", "failed", "declined"):
        assert v1.decode(bytes.fromhex(golden()[name]), v1.Report) == MESSAGES[name]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_field_of_a_later_release_is_ignored(name: str) -> None:
    body = msgspec.msgpack.decode(bytes.fromhex(golden()[name]))
    body["from_the_future"] = [1, {"x": None}]
    message = MESSAGES[name]
    assert v1.decode(msgspec.msgpack.encode(body), type(message)) == message


def test_digests_of_plan_and_study_stand() -> None:
    plan, study = MESSAGES["plan"], MESSAGES["study"]
    assert isinstance(plan, v1.Plan) and isinstance(study, v1.Study)
    assert v1.plan_digest(plan) == golden()["digest-of-plan"]
    assert v1.study_digest(study) == golden()["digest-of-study"]
    renamed = msgspec.structs.replace(plan, name="other", description="")
    assert v1.plan_digest(renamed) == v1.plan_digest(plan)
    for change in ({"entry": "p:X"}, {"files": {"p.py": "x"}}, {"requirements": ()}):
        assert v1.plan_digest(msgspec.structs.replace(plan, **change)) != v1.plan_digest(plan)


def test_message_limit_at_the_limit() -> None:
    body = v1.encode(v1.Problem("e", "x" * 100))
    assert v1.decode(body, v1.Problem, limit=len(body))
    with pytest.raises(WireError, match="over the limit"):
        v1.decode(body, v1.Problem, limit=len(body) - 1)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([v1.Orders, v1.Sealed, v1.Advertisement]))
@example(b"\x81\xa1\xff\x01", v1.Orders)  # a key that is not UTF-8
@example(b"\x91" * 5000, v1.Orders)
@example(b"\x81\xa5error\xa1\xff", v1.Problem)
def test_any_bytes_are_a_message_or_an_error(body: bytes, kind: type[msgspec.Struct]) -> None:
    with contextlib.suppress(WireError):
        assert isinstance(v1.decode(body, kind), kind)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
@example((3).to_bytes(4, "little") + b"\x81\xa1\xff")
@example(b"\xff\xff\xff\xff")
def test_any_worker_bytes_are_a_message_or_an_error(body: bytes) -> None:
    import io  # noqa: PLC0415 - only here

    stream = io.BytesIO(body)
    try:
        found = worker.read(stream, worker.FromWorker)
        assert found is None or isinstance(found, msgspec.Struct)
    except WireError:
        pass


# ---- join tokens -----------------------------------------------------------------------------

TOKEN = JoinToken("https://hub.example:8444", b"\x30\x82ca", "s3cret", "north", 1.8e9)


def test_golden_token() -> None:
    text = (VECTORS / "join-token-v1.txt").read_text().strip()
    assert encode_token(TOKEN) == text
    assert decode_token(text) == TOKEN


def test_a_token_survives_a_mail_program() -> None:
    text = encode_token(TOKEN)
    assert decode_token(
        "  " + "\n".join(text[i : i + 30] for i in range(0, len(text), 30))
    ) == (TOKEN)


def test_a_token_is_never_shown() -> None:
    assert "s3cret" not in repr(TOKEN)
    text = encode_token(TOKEN)
    for damaged in (text[:-5], text[:40] + "!" + text[41:], text + "AAAA", "consilia-join-1."):
        with pytest.raises(ConfigError, match="damaged or cut off") as caught:
            decode_token(damaged)
        assert damaged[16:40] not in str(caught.value) or len(damaged) < 20
        assert caught.value.__cause__ is None
    with pytest.raises(ConfigError, match="not a join token"):
        decode_token("consilia-join-2." + text[16:])


@given(st.text(max_size=100))
def test_any_text_is_a_token_or_an_error(text: str) -> None:
    for line in (text, "consilia-join-1." + text):
        with pytest.raises(ConfigError):
            decode_token(line)


def test_hub_urls() -> None:
    assert split_url("https://hub.example:8444") == ("hub.example", 8444)
    assert split_url("https://hub.example/") == ("hub.example", 443)
    assert split_url("https://[::1]:9") == ("::1", 9)
    for url in (
        "http://h:1",
        "https://",
        "h:1",
        "https://u:p@h",
        "https://h:99999",
        "https://h/x",
    ):
        with pytest.raises(ConfigError, match="must have the form"):
            split_url(url)


# ---- problems --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("AuthError", 401),
        ("Refused", 403),
        ("NotFound", 404),
        ("Conflict", 409),
        ("WireError", 400),
        ("ConfigError", 400),
        ("UpdateRejected", 422),
        ("TransferError", 400),
    ],
)
def test_errors_cross_the_wire(kind: str, status: int) -> None:
    told, body = problem(getattr(errors, kind)("found this, needed that"))
    assert told == status
    error = error_of(told, v1.encode(body))
    assert type(error).__name__ == kind
    assert "found this, needed that" in str(error)


def test_the_hubs_own_troubles_stay_at_the_hub() -> None:
    for error in (StorageError("/var/lib/hub/spool is full"), errors.EmptyRound("x /var/lib")):
        status, body = problem(error)
        assert status >= 500
        assert "/var/lib" not in body.detail
        assert type(error_of(status, v1.encode(body))) is TransferError


@given(st.integers(100, 599), st.binary(max_size=60))
@example(401, b"")
@example(200, v1.encode(v1.Problem("WorkerError", "x")))
@example(404, v1.encode(v1.Problem("SystemExit", "x")))
def test_any_answer_is_some_error(status: int, body: bytes) -> None:
    assert isinstance(error_of(status, body), errors.ConsiliaError)
    if status == 401 and not body:
        assert type(error_of(status, body)) is AuthError


# ---- hello -----------------------------------------------------------------------------------


def client_hello(*names: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if names:
        context.set_alpn_protocols(list(names))
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="hub.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("names", [(), ("http/1.1",), ("consilia-blob/1",), ("h2", "x", "y/2")])
def test_alpn_is_read_from_real_hellos(names: tuple[str, ...]) -> None:
    data = client_hello(*names)
    assert hello.alpn(data) == names
    assert hello.alpn(data + b"more") == names
    known = 0
    for count in range(len(data)):
        need = hello.alpn(data[:count])
        assert isinstance(need, int)
        assert count < need <= len(data)  # it never asks for bytes that will not come
        known = max(known, need)
    assert known == len(data)


def test_a_hello_over_several_records() -> None:
    data = client_hello("consilia-blob/1")
    body, pieces = data[5:], b""
    for start in range(0, len(body), 50):
        piece = body[start : start + 50]
        pieces += b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
    assert hello.alpn(pieces) == ("consilia-blob/1",)


def test_a_hello_at_the_limit() -> None:
    def padded(size: int) -> bytes:
        body = bytes(2 + 32) + b"\0" + b"\0\0" + b"\0"
        rest = size - 5 - 4 - len(body) - 2 - 4
        body += (
            (rest + 4).to_bytes(2, "big") + b"\0\x15" + rest.to_bytes(2, "big") + bytes(rest)
        )
        message = b"\x01" + len(body).to_bytes(3, "big") + body
        return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message

    assert hello.alpn(padded(hello.MAX_HELLO)) == ()
    with pytest.raises(WireError, match="over"):
        hello.alpn(padded(hello.MAX_HELLO + 1))


@settings(max_examples=300)
@given(st.binary(max_size=200), st.data())
def test_any_hello_is_names_or_an_error(noise: bytes, data: st.DataObject) -> None:
    real = bytearray(client_hello("http/1.1"))
    at = data.draw(st.integers(0, len(real) - 1))
    real[at : at + data.draw(st.integers(0, 3))] = noise[:3]
    for body in (noise, bytes(real)):
        try:
            found = hello.alpn(body)
            assert not isinstance(found, int) or len(body) < found <= hello.MAX_HELLO
        except WireError:
            pass


# ---- the blob plane's requests ---------------------------------------------------------------


def test_a_request_is_read() -> None:
    request = parse(
        b"PUT /v1/uploads/x HTTP/1.1\r\nContent-Length: 5\r\nupload-offset:7\r\nA: b"
    )
    assert (request.method, request.path, request.length) == ("PUT", "/v1/uploads/x", 5)
    assert (request.upload_offset, request.upload_length, request.keep) == (7, None, True)
    assert not parse(b"GET /v1/x HTTP/1.1\r\nConnection: Close").keep


@settings(max_examples=300)
@given(st.binary(max_size=MAX_HEAD // 16))
@example(b"GET /v1/x HTTP/1.1\r\n folded: x")
@example("GET /v1/x HTTP/1.1\r\nContent-Length: ²".encode())
@example(b"GET /v1/x HTTP/1.1\r\nA: b\nC: d")
def test_any_head_is_a_request_or_an_error(head: bytes) -> None:
    for body in (head, b"GET /v1/x HTTP/1.1\r\n" + head):
        with contextlib.suppress(WireError):
            parse(body)


@given(st.text(max_size=30), st.integers(0, 1000))
def test_any_range_lies_within_the_file(text: str, size: int) -> None:
    for asked in (text, "bytes=" + text):
        span = parse_range(asked, size)
        assert span is None or 0 <= span[0] <= span[1] <= size


def test_ranges() -> None:
    assert parse_range("", 10) == (0, 10)
    assert parse_range("bytes=3-", 10) == (3, 10)
    assert parse_range("bytes=3-3", 10) == (3, 4)
    assert parse_range("bytes=9-99", 10) == (9, 10)
    for asked in ("bytes=10-", "bytes=4-3", "bytes=-3", "lines=1-2", "bytes=1-2,4-5"):
        assert parse_range(asked, 10) is None
