"""The browser that pages are opened in."""

import pytest
from browser import headless_chromium, resize


@pytest.fixture(scope="package")
def browser():
    """Headless Chromium, 400 x 800 pixels, that reaches nothing."""
    started = headless_chromium()
    resize(started, 400, 800)
    yield started
    started.quit()


@pytest.fixture
def resized(browser):
    """``resized(width)`` changes the width of the window, in pixels, until the end of the test."""

    def resize(width):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    yield resize
    resize(400)
