"""Reports in a browser, at a desk and on a phone, light and dark: nothing asked for, all of it readable."""

import json
from itertools import product

import pytest

from pimserve.cluster.report.report import write_report
from pimserve.cluster.sweep.grid import load_grid
from pimserve.cluster.sweep.sweep import sweep
from pimserve.cluster.sweep.workers import ProcessWorkers
from tests.browser import CHROMIUM, OPTIONS, WIDTHS
from tests.cluster.report.runs import AIMC, MEASURED, make_run

PAGES = ("duplex", "aimc", "measured", "pools", "faults", "comparison", "many", "sweep")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed"),
]

# Elements with text of their own whose colour stands out less than WCAG AA asks of them, and of lines in pictures
# (3 to 1). Backgrounds are opaque here, so that the nearest one is what is behind.
CONTRAST = """() => {
  const parts = colour => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ratio = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((m, n) => n - m);
    return (x + 0.05) / (y + 0.05);
  };
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parts(getComputedStyle(each).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 1];
  };
  const poor = [];
  let texts = 0, marks = 0;
  for (const element of document.querySelectorAll("body *:not(script)")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("title, desc, [hidden]")) continue;
    const style = getComputedStyle(element), inPicture = element.closest("svg");
    const colour = parts(inPicture ? style.fill : style.color);
    texts += 1;
    const found = ratio(colour, behind(element));
    if (found < 4.5 || colour[3] < 1) poor.push([element.tagName, element.textContent.slice(0, 40), found]);
  }
  for (const line of document.querySelectorAll("svg path, svg use")) {
    const style = getComputedStyle(line), back = behind(line);
    const written = line.getAttribute("style") || "";
    if (!/--series|--text/.test(written) || /opacity/.test(written)) continue;
    marks += 1;
    const drawn = [style.fill, style.stroke].filter(each => each.startsWith("rgb")).map(parts);
    const found = Math.max(...drawn.map(each => ratio(each, back)));
    if (found < 3) poor.push([line.tagName, written, found]);
  }
  return {poor, texts, marks};
}"""
# What no reader can see or use: text of a picture that is cut off at its edge, or too small on this screen.
PICTURES = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const label = svg.querySelector("title").textContent;
  return [...svg.querySelectorAll("text")].flatMap(text => {
    const box = text.getBoundingClientRect();
    const across = box.left > frame.left - 2 && box.right < frame.right + 2;
    const inside = across && box.top > frame.top - 2 && box.bottom < frame.bottom + 2;
    const size = parseFloat(getComputedStyle(text).fontSize) * frame.width / svg.viewBox.baseVal.width;
    return inside && size >= 8.5 ? [] : [[label, text.textContent, inside, size]];
  });
})"""

UNREACHABLE = """() => [...document.querySelectorAll("body *")].filter(each =>
  ["auto", "scroll"].includes(getComputedStyle(each).overflowX) && each.scrollWidth > each.clientWidth
  && each.tabIndex < 0 && !each.closest("details:not([open])")).length"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files of reports by name."""
    folder = tmp_path_factory.mktemp("reports")
    duplex = make_run(
        folder / "duplex", "run.warmup_s=5", "cluster.experts=ep", "routing={popularity: zipf, zipf_exponent: 1}"
    )
    aimc = make_run(folder / "aimc", *AIMC)
    measured = make_run(folder / "measured", *MEASURED)
    pools = "{prefill: {device: h100}, decode: {device: duplex}, handover: {gb_per_s: 50}}"
    apart = make_run(folder / "pools", f"cluster.pools={pools}")
    faults = "{events: [{at_s: 5, replica: 0, device: 1, kind: slow, for_s: 2, factor: 2}]}"
    faulty = make_run(folder / "faults", f"faults={faults}")
    axes = ["cluster.device=duplex,h100,logic-pim", "cluster.devices_per_node=2,4,8"]
    sweep(
        load_grid(None, ["workload.num_requests=30", "output.steps=false"], axes, 2),
        folder / "sweep",
        ProcessWorkers(2),
    )
    of = {
        "duplex": [duplex],
        "aimc": [aimc],
        "measured": [measured],
        "pools": [apart],
        "faults": [faulty],
        "comparison": [duplex, measured, aimc],
        "many": [duplex, measured, aimc, apart, faulty] * 3,
        "sweep": [folder / "sweep"],
    }
    return {name: write_report(places, folder / f"{name}.html") for name, places in of.items()}


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, pages):
    """Open a report; whatever it complains of or asks for fails the test."""
    contexts, odd = [], []

    def opened(name, width=1280, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: odd.append(message.text))
        page.on("pageerror", lambda error: odd.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("file://") else odd.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert odd == []


@pytest.mark.parametrize(
    ("name", "place", "scheme"),
    [
        pytest.param(name, *view, marks=pytest.mark.deep if (page + number) % 3 else ())  # a third of the views of each
        for page, name in enumerate(PAGES)
        for number, view in enumerate(product(WIDTHS, ("light", "dark")))
    ],
)
def test_a_report_can_be_read(visit, name, place, scheme):
    page = visit(name, WIDTHS[place], scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[place]
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    found = page.evaluate(CONTRAST)
    assert found["texts"] > 50
    assert found["marks"] > 10
    assert found["poor"] == []
    assert page.evaluate(PICTURES) == []
    assert page.title()


@pytest.mark.parametrize("name", PAGES)
def test_pictures_and_tables_say_what_they_are(visit, name):
    page = visit(name)
    for picture in page.locator("svg").all():
        role = picture.get_attribute("role")
        assert role == "img"
        words = [
            page.locator(f"[id='{each}']").text_content() for each in picture.get_attribute("aria-labelledby").split()
        ]
        assert all(words)
        assert any(character.isdigit() for character in words[1])  # figures, not only a title
    for table in page.locator("table").all():
        assert table.locator("caption").count() == 1
    assert page.locator("img, iframe, object, embed").count() == 0


def test_the_theme_can_be_changed_by_keyboard(visit):
    page = visit("duplex")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    button = page.get_by_role("button", name="Dark theme")
    for _ in range(3):
        page.keyboard.press("Tab")
        if button.evaluate("each => each === document.activeElement"):
            break
    page.keyboard.press("Enter")
    dark = page.evaluate(paper)
    assert dark != light
    assert page.evaluate(CONTRAST)["poor"] == []
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(paper) == light
    assert page.evaluate("localStorage.length + document.cookie.length") == 0


def test_what_scrolls_can_be_reached_by_keyboard(visit):
    page = visit("comparison", 360)
    unreachable = page.evaluate(UNREACHABLE)
    assert unreachable == 0
    page.locator("summary").first.press("Enter")
    assert page.locator("details[open] pre").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_script_the_page_is_whole(visit):
    page = visit("duplex", 1280, "dark", java_script_enabled=False)
    assert page.locator("svg").first.is_visible()
    assert not page.locator("#theme").is_visible()


def test_print_is_light_and_motion_can_be_reduced(visit):
    page = visit("duplex", 1280, "dark", reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRAST)["poor"] == []
    assert not page.locator("#theme").is_visible()
    assert len(page.pdf()) > 50_000


@pytest.mark.parametrize("name", ["duplex", "aimc", "pools", "comparison", "sweep"])
def test_nothing_is_cut_off_on_paper(visit, name):
    page = visit(name, 718)  # A4 less margins of 1 cm, at 96 per inch
    page.emulate_media(media="print")
    wide = (
        "[...document.querySelectorAll('table, svg')].filter(each => each.getBoundingClientRect().right > 719).length"
    )
    assert page.evaluate(wide) == 0


def test_hostile_names_run_nothing(visit, pages, tmp_path):
    folder = pages["duplex"].parent / "duplex"
    summary = json.loads((folder / "summary.json").read_text())
    name = "<img src=x onerror=console.log('ran')><script>console.log('ran')</script>"
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"name": name, "warnings": [name], "workload": name}))
    pages["hostile"] = write_report([tmp_path], tmp_path / "out.html")
    page = visit("hostile")
    assert page.locator("h1").text_content() == name
