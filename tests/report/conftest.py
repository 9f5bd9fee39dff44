"""The browser that pages are opened in."""

import pytest
from browser import headless_chromium, resize

PHONE = (400, 800)


@pytest.fixture(scope="package")
def browser():
    """Headless Chromium, 400 x 800 pixels, that reaches nothing."""
    started = headless_chromium()
    resize(started, *PHONE)
    yield started
    started.quit()


@pytest.fixture
def resized(browser):
    """``resized(width)`` changes the width of the window, in pixels, until the end of the test."""
    yield lambda width: resize(browser, width, 800)
    resize(browser, *PHONE)
