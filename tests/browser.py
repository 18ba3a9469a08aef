"""A real TensorBoard, looked at with a real browser."""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

# TensorBoard's pages nest shadow roots, which ordinary selectors do not look into.
FIND_ALL = """
const found = [], selector = arguments[0];
(function search(root) {
  for (const node of root.querySelectorAll('*')) {
    if (node.matches(selector)) found.push(node);
    if (node.shadowRoot) search(node.shadowRoot);
  }
})(document);
return found;
"""


@contextmanager
def tensorboard(log_dir):
    """The address of a TensorBoard on the logs."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir), "--port", "0", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--samples_per_plugin", "images=1000", "--load_fast", "false"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        address = next(found for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        yield address.group()
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def chromium():
    """A headless Chromium."""
    options = Options()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as profile:
        for flag in (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1400,1500",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def find_all(driver, selector):
    """All elements that match, also within shadow roots."""
    return driver.execute_script(FIND_ALL, selector)


def wait_for(condition, seconds=60):
    """What the condition returns as soon as it is truthy."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.25)
    raise TimeoutError(f"still not so after {seconds} s")
