"""The browser that pages are opened in."""

import shutil

import pytest


@pytest.fixture(scope="package")
def browser():
    """Headless Chromium, 400 x 800 pixels, that reaches nothing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip(f"no {'Chromium' if driver else 'chromedriver'} on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    started.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
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
