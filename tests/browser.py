"""A page as headless Chromium sees it."""

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")


def chromium(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page. Skips the test, saying so, where there is no browser."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine; what came before was checked (apt-get install chromium)")
    place = f"--user-data-dir={page.parent / 'profile'}"
    command = [BROWSER, *FLAGS, place, *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)
