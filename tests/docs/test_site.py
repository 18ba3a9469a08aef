"""The documentation's site: built strictly, whole, and looked at in a browser."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import chromium, wait_for

ROOT = Path(__file__).resolve().parents[2]
PHONE, LAPTOP = 390, 1280  # px

pytestmark = pytest.mark.mkdocs


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site, in which a warning would have been an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Loaded(HTMLParser):
    """What a page loads, rather than links to."""

    def __init__(self):
        super().__init__()
        self.sources = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        loads = tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "alternate")
        self.sources += [given[name] for name in ("src", "srcset", "data") if given.get(name)]
        self.sources += [given["href"]] if loads and given.get("href") else []


def pages_of(site):
    return sorted(path for path in site.rglob("*.html") if path.name == "index.html")


def addresses_of(site, address):
    return [f"{address}/{page.parent.relative_to(site).as_posix()}/".replace("/./", "/") for page in pages_of(site)]


def test_every_page_is_there(site):
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    expected = {Path("index.html") if str(one) == "index" else one / "index.html" for one in sources}
    assert {page.relative_to(site) for page in pages_of(site)} == expected


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        parser = Loaded()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.sources
        assert [source for source in parser.sources if re.match(r"(https?:)?//", source)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_equations_are_mathml_and_hidden_code_is_not_there(site):
    text = {page.parent.name: page.read_text(encoding="utf-8") for page in pages_of(site)}
    assert text["method"].count('display="block"') >= 8
    for page in text.values():
        assert "arithmatex" not in page
        assert "tests.docs.tiny" not in page


def test_the_interface_is_described_from_its_docstrings(site):
    callback = (site / "api" / "callback" / "index.html").read_text(encoding="utf-8")
    for argument in ("every_n_epochs", "max_overhead", "regions"):
        assert f"<code>{argument}</code>" in callback
    assert "Trainer</span>" in callback  # the example, as code
    assert "#gfi_lightning.training.types.ScheduleLike" in callback
    assert '<span title="gfi_lightning.training.types.' not in callback  # each type is a link to what it stands for
    for page in (site / "api").rglob("*.html"):
        assert not re.search(r":(class|func|meth|mod):|<blockquote>", page.read_text(encoding="utf-8")), page
    metrics = (site / "api" / "metrics" / "index.html").read_text(encoding="utf-8")
    assert "insertion_deletion" in metrics


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


def set_width(driver, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


@pytest.mark.browser
def test_every_page_shows_without_a_complaint(site, address, browser):
    browser.get_log("browser")
    for page in addresses_of(site, address):
        set_width(browser, LAPTOP)
        browser.get(page)
        wait_for(lambda: browser.execute_script("return document.readyState == 'complete'"))
        broken = browser.execute_script(
            "return [...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src)"
        )
        assert broken == [], page
        assert complaints(browser) == [], page
        elsewhere = browser.execute_script(
            "return performance.getEntriesByType('resource').map(one => one.name)"
            ".filter(name => !name.startsWith(location.origin))"
        )
        assert [name for name in elsewhere if not name.startswith("data:")] == [], page
        for width in (LAPTOP, PHONE):
            set_width(browser, width)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_equations_show(address, browser):
    browser.get(f"{address}/method/")
    # On a busy machine the page may be there a moment later.
    wait_for(lambda: browser.execute_script("return document.querySelectorAll('math[display=block]').length >= 8"))
    heights = browser.execute_script(
        "return [...document.querySelectorAll('math[display=block]')].map(one => one.getBoundingClientRect().height)"
    )
    assert min(heights) > 15
    fraction = browser.execute_script("return document.querySelector('mfrac').getBoundingClientRect().height")
    assert fraction > 25  # numerator above denominator: as text it would be a line


@pytest.mark.browser
def test_one_gets_around(address, browser):
    browser.get(f"{address}/")
    browser.find_element("link text", "How to read the pictures").click()
    wait_for(lambda: browser.current_url.endswith("/reading/"))
    browser.execute_script("document.querySelector('.md-footer__link--next').click()")
    wait_for(lambda: "/debugging/shortcut/" in browser.current_url)


@pytest.mark.browser
def test_the_search_finds_an_argument(address, browser):
    browser.get(f"{address}/")
    browser.execute_script("document.querySelector('#__search').click()")
    field = browser.find_element("css selector", ".md-search__input")
    field.send_keys("max_overhead")
    found = wait_for(lambda: browser.find_elements("css selector", ".md-search-result__link"))
    assert any("/api/callback/" in one.get_attribute("href") for one in found)
