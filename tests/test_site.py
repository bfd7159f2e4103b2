"""The site: built strictly, complete, asking nobody outside for anything, and fit for a desk and a phone."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
import yaml

from tests.browser import CHROMIUM, OPTIONS, WIDTHS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        # Not --quiet: that silences --strict too.
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages_of(site):
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


class Links(HTMLParser):
    """What a page refers to, and where it can be referred to."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.targets.append(given["href"])
        if tag in {"script", "img", "iframe", "source"} and "src" in given:
            self.loaded.append(given["src"])
        if tag == "link" and "canonical" not in given.get("rel", ""):
            self.loaded.append(given["href"])


@pytest.mark.medium
def test_every_page_is_in_the_navigation(site):
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(config[config.index("\nnav:") :])["nav"]

    def names(entry):
        if isinstance(entry, str):
            yield entry.removesuffix(".md")
        else:
            for below in entry.values() if isinstance(entry, dict) else entry:
                yield from names(below)

    listed = list(names(nav))
    assert len(listed) == len(set(listed))
    assert set(listed) == {str(path.relative_to(site).with_suffix("")) for path in pages_of(site)}
    docs = ROOT / "docs"
    assert {str(path.relative_to(docs).with_suffix("")) for path in docs.rglob("*.md")} <= set(listed)


@pytest.mark.medium
def test_links_lead_somewhere(site):
    parsed = {path: Links(path.read_text(encoding="utf-8")) for path in pages_of(site)}
    for path, links in parsed.items():
        for target in [*links.targets, *links.loaded]:
            if re.match(r"https?:|mailto:|data:", target):
                continue
            address, anchor = urldefrag(urljoin(path.as_uri(), target))
            file = Path(unquote(address.removeprefix("file://")))
            file = file / "index.html" if file.is_dir() else file
            assert file.exists(), (path.name, target)
            if anchor and file in parsed:
                assert unquote(anchor) in parsed[file].anchors, (path.name, target)


@pytest.mark.medium
def test_nothing_is_loaded_from_elsewhere(site):
    for path in pages_of(site):
        loaded = Links(path.read_text(encoding="utf-8")).loaded
        assert not [source for source in loaded if re.match(r"(https?:)?//", source)], path.name


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM} to look at the site with")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, address, request):
    """A page of the browser that collects what went wrong; `tab.wrong` must stay empty."""
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    page = context.new_page()
    page.wrong = []
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    # The next page may come while this one still loads its search.
    page.on("requestfailed", lambda failed: None if "ABORTED" in failed.failure else page.wrong.append(failed.url))
    page.on(
        "request",
        lambda made: None if made.url.startswith((address, "data:", "blob:")) else page.wrong.append(made.url),
    )
    yield page
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "tab",
    [
        pytest.param(width, id=place, marks=pytest.mark.deep if place == "desk" else ())
        for place, width in WIDTHS.items()
    ],
    indirect=True,
)
def test_pages_in_a_browser(tab, address, site):
    for path in pages_of(site):
        tab.goto(address + str(path.relative_to(site)), wait_until="load")
        widths = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert widths[0] <= widths[1], path.name
        assert tab.locator("article h1").count() == 1, path.name
        assert tab.wrong == [], path.name


@pytest.mark.slow
@pytest.mark.parametrize("tab", [WIDTHS["desk"]], indirect=True)
def test_search_finds_a_key(tab, address):
    tab.goto(address)
    box, found = tab.locator("input.md-search__input"), tab.locator("a.md-search-result__link").first
    for _ in range(12):  # what is typed before the page's script listens is lost
        box.fill("")
        box.press_sequentially("max_num_batched_tokens")
        tab.wait_for_timeout(5_000)
        if found.count():
            break
    assert "scenario.html" in found.get_attribute("href")
    assert tab.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("tab", [WIDTHS["phone"]], indirect=True)
def test_reference_tables_are_cards_on_a_phone(tab, address):
    tab.goto(address + "scenario.html")
    row = tab.locator(".reference tbody tr").first
    boxes = [cell.bounding_box() for cell in row.locator("td").all() if cell.is_visible()]
    assert len(boxes) >= 3
    assert len({box["x"] for box in boxes}) == 1
    assert all(box["x"] + box["width"] <= WIDTHS["phone"] for box in boxes)
