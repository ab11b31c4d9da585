"""One thread, since the networks here are so small that a second one slows every test down; and a real browser."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Without these, Chromium looks up its maker's hosts at every start.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def unavailable(reason: str) -> None:
    """Skip, and say why; on a continuous-integration machine, fail."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def browser():
    from playwright import sync_api

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, channel=None if path else "chrome", args=FLAGS)
        except sync_api.Error as error:
            unavailable(f"neither Chromium nor Chrome can be started here: {error.message.splitlines()[0]}")
        yield started
        started.close()
