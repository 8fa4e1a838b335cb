"""The browser's part of a program: the files that a build of web/ put into its package.

Which files there are is found out once, so no path that a browser sends touches the disk.
"""

import gzip
import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

_KINDS: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_DENSE = frozenset((".woff2", ".png", ".jpg"))  # gzip would only make them longer
_FOREVER = "public, max-age=31536000, immutable"
_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Consilia</title>
<h1>{what} are not built</h1>
<p>This copy of Consilia runs from its source. Build the pages once, with Node.js 20:</p>
<pre>./run web</pre>
<p>and start {program} again. An installed package brings them along.</p></html>
"""


@dataclass(frozen=True, slots=True)
class Page:
    """What a path answers."""

    body: bytes
    kind: str
    cache: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer to a GET: status, body and headers."""

    status: int
    body: bytes
    kind: str
    headers: Mapping[str, str]


def find(folder: Path) -> Mapping[str, Path]:
    """Return URL path -> file of everything below `folder`."""
    root = folder.resolve()
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else []
    return {
        f"/{p.relative_to(root).as_posix()}": p
        for p in files
        if p.resolve().is_relative_to(root) and not p.name.startswith(".")
    }


def missing(what: str, program: str) -> bytes:
    """Return the page that stands in for pages which were not built: `what`, of `program`."""
    return _MISSING.format(what=what, program=program).encode()


def page(files: Mapping[str, Path], path: str, instead: bytes) -> Page:
    """Return the file at a path, the application's own page for every other path.

    Names below /assets hold a digest of the content, so browsers may keep them. `instead` is
    shown when there is no page at all.
    """
    found = files.get(path) or files.get("/index.html")
    if found is None:
        return Page(instead, _KINDS[".html"], "no-store")
    usual = mimetypes.guess_type(found.name)[0] or "application/octet-stream"
    kind = _KINDS.get(found.suffix, usual)
    kept = path.startswith("/assets/") and path in files
    return Page(found.read_bytes(), kind, _FOREVER if kept else "no-cache")


@dataclass(frozen=True, slots=True)
class _Made:
    """A file as it is answered: read, named and compressed once."""

    page: Page
    tag: str
    short: bytes | None  # gzip; None where that saves nothing


@dataclass(slots=True)
class Shelf:
    """The built pages, each read, compressed and given its ETag when it is first asked for."""

    files: Mapping[str, Path]
    instead: bytes
    _made: dict[str, _Made] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def answer(self, path: str, known: str = "", encodings: str = "") -> Answer:
        """Answer a GET of `path`; blocks on the disk the first time.

        `known` and `encodings` are the request's If-None-Match and Accept-Encoding.
        """
        name = path if path in self.files else "/index.html"
        with self._lock:
            if (made := self._made.get(name)) is None:
                made = _make(page(self.files, name, self.instead), Path(name).suffix)
                if self.files:
                    self._made[name] = made
        headers = {
            "Cache-Control": made.page.cache,
            "ETag": made.tag,
            "Vary": "Accept-Encoding",
        }
        if made.tag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            return Answer(304, b"", made.page.kind, headers)
        if made.short is not None and accepts_gzip(encodings):
            headers["Content-Encoding"] = "gzip"
            return Answer(200, made.short, made.page.kind, headers)
        return Answer(200, made.page.body, made.page.kind, headers)


def accepts_gzip(encodings: str) -> bool:
    """Return whether an Accept-Encoding header admits gzip (RFC 9110, 12.5.3)."""
    for part in encodings.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _make(found: Page, suffix: str) -> _Made:
    tag = f'"{hashlib.sha256(found.body).hexdigest()[:32]}"'
    short = None if suffix in _DENSE else gzip.compress(found.body, 9, mtime=0)
    useful = short is not None and len(short) < len(found.body)
    return _Made(found, tag, short if useful else None)
