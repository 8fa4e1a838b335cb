"""The browser's part of the console: the files that the build of web/ put into the package.

Which files there are is found out once, so no path that a browser sends touches the disk.
"""

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Consilia</title>
<h1>The console's pages are not built</h1>
<p>This copy of Consilia runs from its source. Build the pages once, with Node.js 20:</p>
<pre>./run web</pre>
<p>and start the console again. An installed package brings them along.</p></html>
"""
_KINDS: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Page:
    """What a path answers."""

    body: bytes
    kind: str
    cache: str


def find(folder: Path) -> Mapping[str, Path]:
    """Return URL path -> file of everything below `folder`."""
    root = folder.resolve()
    files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else []
    return {
        f"/{p.relative_to(root).as_posix()}": p
        for p in files
        if p.resolve().is_relative_to(root) and not p.name.startswith(".")
    }


def page(files: Mapping[str, Path], path: str) -> Page:
    """Return the file at a path; the application's own page for every other path.

    Names below /assets hold a digest of the content, so browsers may keep them.
    """
    found = files.get(path) or files.get("/index.html")
    if found is None:
        return Page(MISSING.encode(), _KINDS[".html"], "no-store")
    usual = mimetypes.guess_type(found.name)[0] or "application/octet-stream"
    kind = _KINDS.get(found.suffix, usual)
    kept = path.startswith("/assets/") and path in files
    return Page(found.read_bytes(), kind, _FOREVER if kept else "no-cache")
