"""How soon the hub's dashboard is painted for a first visitor, and how much that loads."""

import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from bench.local import LocalFederation

PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"


def measure(root: Path, visits: int) -> dict[str, Any]:
    """Return seconds to the first paint with content, and KB of script and style as sent.

    Each visit has a new browser profile: nothing is cached. Needs Chromium and playwright.
    """
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - of this bench alone

    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("Chromium is not installed (Debian: apt-get install chromium)")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with LocalFederation(root) as federation, sync_playwright() as playwright:
        federation.make_hub()
        federation.start_hub()
        browser = playwright.chromium.launch(executable_path=found, args=sandbox)
        seen = [_visit(browser, federation.addresses["people"]) for _ in range(visits)]
        browser.close()
    return {
        "first_paint_s": statistics.median(paint for paint, _ in seen),
        "slowest_paint_s": max(paint for paint, _ in seen),
        "entry_kb": max(size for _, size in seen) / 1000,
        "visits": visits,
    }


def _visit(browser: Any, origin: str) -> tuple[float, int]:
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    sizes: list[int] = []

    def count(response: Any) -> None:
        if response.url.endswith((".js", ".css")):
            sizes.append(int(response.headers["content-length"]))

    page.on("response", count)
    page.goto(origin)
    page.get_by_role("heading", name="Sign in to the hub").wait_for()
    paint: float = page.evaluate(PAINT)
    context.close()
    return paint, sum(sizes)
