"""The dashboard's client speaks of the records and routes that the hub has; its files."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from consilia.hub.people import roles
from consilia.hub.rest.api import PLAIN_ROUTES, PREFIX, ROUTES
from consilia.hub.rest.pages import HEADERS
from consilia.web.openapi import document
from consilia.web.static import Shelf, accepts_gzip, find, missing
from consilia.wire.people import Request, View

API = Path(__file__).resolve().parents[2] / "web" / "src" / "hub" / "api"
_CALL = re.compile(r"\b(get|post|put|patch|remove)\b[^\"`]*?\"(/api/v1/[^\"?]+)\"")
_METHOD = {"get": "get", "post": "post", "put": "put", "patch": "patch", "remove": "delete"}


def described() -> dict[str, dict[str, dict[str, object]]]:
    routes = [(PREFIX + path, route) for route in ROUTES for path in route.paths]
    return document(routes + [(path, route) for route in PLAIN_ROUTES for path in route.paths])


def below(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from below(sub)


def test_the_typescript_records_are_those_of_the_wire() -> None:
    text = (API / "schema.ts").read_text()
    records = {kind.__name__: kind for base in (Request, View) for kind in below(base)}
    blocks = dict(
        re.findall(
            r"^        readonly (\w+): \{\n(.*?)^        \};", text, re.MULTILINE | re.DOTALL
        )
    )
    known = described()["components"]["schemas"].keys() & records.keys() & blocks.keys()
    assert len(known) > 50
    for name in known:
        found = re.findall(r"^            readonly (\w+)\??:", blocks[name], re.MULTILINE)
        assert sorted(found) == sorted(records[name].__struct_encode_fields__), (
            f"{name} in schema.ts is not the hub's: in web/, run npm run client:hub"
        )


def test_every_request_of_the_client_has_a_route() -> None:
    routes = {
        (method, path) for path, methods in described()["paths"].items() for method in methods
    }
    text = (API / "client.ts").read_text().partition("export type HubClient")[0]
    calls = _CALL.findall(text)
    assert len(calls) == text.count('"/api/v1/') > 50
    missing_routes = {(_METHOD[verb], path) for verb, path in calls} - routes
    assert not missing_routes


def test_the_pages_know_the_hubs_roles() -> None:
    text = (API / "people.ts").read_text()
    offered = re.search(r"ROLES: readonly Role\[\] = \[(.*?)\]", text, re.DOTALL)
    assert offered
    assert sorted(re.findall(r'"([\w-]+)"', offered[1])) == sorted(roles.ROLES)


def test_a_file_is_compressed_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    code = "const a = 1;\n" * 200
    (tmp_path / "index.html").write_text("home")
    (tmp_path / "assets" / "a-1f.js").write_text(code)
    shelf = Shelf(find(tmp_path), missing("The pages", "the hub"))
    full = shelf.answer("/assets/a-1f.js")
    short = shelf.answer("/assets/a-1f.js", encodings="br, gzip;q=0.8")
    assert (full.body.decode(), gzip.decompress(short.body).decode()) == (code, code)
    assert len(short.body) < len(full.body) / 10
    assert "immutable" in short.headers["Cache-Control"]
    assert short.headers["Vary"] == "Accept-Encoding"
    again = shelf.answer("/assets/a-1f.js", known=f'"other", W/{full.headers["ETag"]}')
    assert (again.status, again.body) == (304, b"")
    for path in ("/", "/studies/x", "/../secret", "/assets/none.js"):
        found = shelf.answer(path)
        assert (found.body, found.headers["Cache-Control"]) == (b"home", "no-cache")


def test_gzip_is_sent_to_who_takes_it() -> None:
    taken = ("gzip", "GZIP;q=0.5", "br, *", "identity, gzip")
    refused = ("", "br", "gzip;q=0", "gzip; q=0.0", "identity")
    assert all(map(accepts_gzip, taken))
    assert not any(map(accepts_gzip, refused))


def test_a_copy_without_pages_says_how_to_build_them(tmp_path: Path) -> None:
    shelf = Shelf(find(tmp_path / "none"), missing("The dashboard's pages", "the hub"))
    found = shelf.answer("/")
    assert b"./run web" in found.body
    assert found.headers["Cache-Control"] == "no-store"


def test_the_pages_run_no_script_but_the_hubs() -> None:
    rules = dict(
        part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";")
    )
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
