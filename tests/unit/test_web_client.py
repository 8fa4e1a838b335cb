"""The browser's client speaks of the records and routes that the server has."""

import re
from pathlib import Path

from consilia.node.console.app import described
from consilia.wire.console import Request, View

API = Path(__file__).resolve().parents[2] / "web" / "src" / "console" / "api"
_CALL = re.compile(
    r"\b(get|post|put|patch|remove)(?:<[\w.]+>)?\(\s*(?:address\()?\"(/api/[^\"]+)\""
)
_METHOD = {"get": "get", "post": "post", "put": "put", "patch": "patch", "remove": "delete"}


def test_the_typescript_records_are_those_of_the_wire() -> None:
    text = (API / "schema.ts").read_text()
    kinds = Request.__subclasses__() + View.__subclasses__()  # the routes import every area
    assert len(kinds) > 70
    for kind in kinds:
        name = kind.__name__
        block = re.search(
            rf"^        readonly {name}: \{{\n(.*?)^        \}};",
            text,
            re.MULTILINE | re.DOTALL,
        )
        assert block, f"schema.ts lacks {name}: in web/, run npm run client"
        found = re.findall(r"^            readonly (\w+)\??:", block[1], re.MULTILINE)
        assert sorted(found) == sorted(kind.__struct_encode_fields__), (
            f"{name} in schema.ts is not the one of wire.console: in web/, run npm run client"
        )


def test_every_request_of_the_client_has_a_route() -> None:
    routes = {
        (method, path) for path, methods in described()["paths"].items() for method in methods
    }
    calls = _CALL.findall((API / "client.ts").read_text())
    assert len(calls) > 50
    missing = {(_METHOD[verb], path) for verb, path in calls} - routes
    assert not missing


def test_the_lock_file_names_no_registry() -> None:
    lock = (API.parents[2] / "package-lock.json").read_text()
    assert '"integrity": "sha512-' in lock
    assert '"resolved"' not in lock
