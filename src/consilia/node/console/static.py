"""The console's pages: what the build of web/ put beside this file (see web.static)."""

from collections.abc import Mapping
from pathlib import Path

from consilia.web import static
from consilia.web.static import Page, find

__all__ = ["Page", "find", "page"]


def page(files: Mapping[str, Path], path: str) -> Page:
    """Return the file at a path; the application's own page for every other path."""
    return static.page(files, path, static.missing("The console's pages", "the console"))
