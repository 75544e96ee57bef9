"""A browser and its visits to the page, for the tests in a real browser."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from helpers.browser import CHROMIUM, COUNT_STREAMS, SETTLED, WAIT_MS, fake_devices
from helpers.web import Server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    options = [*fake_devices(tmp_path_factory.mktemp("devices")), "--autoplay-policy=no-user-gesture-required"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # Chromium has none for root
    playwright = pytest.importorskip("playwright.sync_api", reason="it is missing: pip install -r requirements-dev.txt")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server: Server) -> Iterator[Callable]:
    """Opens the page as a visitor of its own; no other host may be asked, no policy broken, no script fail."""
    with contextlib.ExitStack() as stack:
        trouble: list[str] = []

        def open_page(width: int = 1280, height: int = 900, scheme: str = "light"):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            stack.callback(context.close)
            context.set_default_timeout(WAIT_MS)
            page = context.new_page()
            page.on("console", lambda said: trouble.append(said.text) if "Security Policy" in said.text else None)
            page.on("pageerror", lambda error: trouble.append(f"script: {error}"))
            page.on("request", lambda request: trouble.append(request.url) if _elsewhere(request.url, server) else None)
            page.add_init_script(COUNT_STREAMS)
            page.goto(server.url)
            page.wait_for_selector("#run")
            page.wait_for_function(SETTLED)
            return page

        yield open_page
    assert not trouble


def _elsewhere(url: str, server: Server) -> bool:
    return not url.startswith((server.url, "data:", "blob:"))
