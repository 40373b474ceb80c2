"""The page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.browser import Browser
from tests.agent.paging import HURRY, Page


@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Browser]:
    with Browser(chromium) as browser:
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=HURRY)
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    browser.errors.clear()
    browser.resize(1280, 900)
    page = Page(browser)
    yield page
    page.server.close()
    assert browser.errors == []  # no exception in its code, nothing refused by its policy
