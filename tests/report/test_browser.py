"""The page in a real browser: nothing on the console, nothing asked of the network, nothing wider than the screen.

Chromium is found on the path, or where the variable CHROMIUM says.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from limbeck.report import write_comparison, write_report
from report.browser import Browser, find
from report.planted import CHARTS, FAULTS, WHOLE, comparison, make_detected, make_faulty, make_probed

PROGRAM = find()
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine; CHROMIUM=/path/to/it names one"),
    pytest.mark.processes,
]
SLIDER = "document.querySelector('#spectrum-feature .slider input')"
SHOWN = "[...document.querySelectorAll('#spectrum-feature path[data-series]')].map(p => p.getAttribute('d'))"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile") / "user") as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    run = make_probed(folder / "run", data="a-very-long-name-of-a-folder-of-images/" * 4, method="projector+kd")
    (folder / "compared").mkdir()
    return {
        "run": write_report(run),
        "comparison": write_comparison(comparison(folder / "compared")),
        "detector": write_report(make_detected(folder / "detector", classes=30)),
    }


def test_every_verdict_leads_to_a_figure_that_is_drawn(browser: Browser, tmp_path: Path):
    """One run for each kind of figure that a rule names, with a term whose name no id can have."""
    page = write_report(make_faulty(tmp_path / "run"))
    browser.open(page, width=1280)
    links = browser.ask("[...document.querySelectorAll('.verdicts a')].map(a => a.getAttribute('href'))")
    assert links == [f"#{figure}" for figure in FAULTS.values()]
    for link in links:
        browser.ask(f"document.querySelector('.verdicts a[href=\"{link}\"]').click()")
        assert browser.ask("decodeURIComponent(location.hash)") == link
        size = browser.ask(f"""(({{width, height}}) => [width, height])(
            document.getElementById("{link[1:]}").querySelector("svg").getBoundingClientRect())""")
        assert size[0] > 200, link
        assert size[1] > 100, link
        top = browser.ask(f"document.getElementById('{link[1:]}').getBoundingClientRect().top")
        assert -1 < top < browser.ask("innerHeight"), link
    assert browser.faults == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["run", "comparison", "detector"])
def test_a_page_is_sound(browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool):
    browser.open(pages[name], width=width, dark=dark)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    wider = f"""[...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll, pre, svg, .spoken")
        && e.getBoundingClientRect().right > {width} + 1).map(e => e.outerHTML.slice(0, 90))"""
    assert browser.ask(wider) == []
    assert browser.faults == []
    asked = [url for url in browser.requests if not url.startswith(("data:image/png;", "data:image/jpeg;"))]
    assert asked == [pages[name].resolve().as_uri()]


@pytest.mark.parametrize("width", [1280, 390])
def test_every_plot_is_drawn(browser: Browser, pages: dict[str, Path], width: int):
    browser.open(pages["run"], width=width)
    for figure in [*(f"{kind}-feature" for kind in CHARTS), *WHOLE]:
        seen = f"""[...document.getElementById("{figure}").querySelectorAll("svg")]
            .filter(svg => svg.getBoundingClientRect().width > 200 && svg.getBoundingClientRect().height > 100)
            .map(svg => [...svg.querySelectorAll("path")].every(p => p.getTotalLength() > 0))"""
        assert browser.ask(seen) == [True], figure
    assert browser.ask("[...document.images].every(i => i.complete && i.naturalWidth == 32)")


@pytest.mark.parametrize("width", [1280, 390])
def test_boxes_lie_on_their_images(browser: Browser, pages: dict[str, Path], width: int):
    """Each panel has its image, and every box of it lies within; the teacher's panel reuses the student's image."""
    browser.open(pages["detector"], width=width)
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    seen = browser.ask("""[...document.querySelectorAll('.boxes svg')].map(svg => {
        const own = svg.getBoundingClientRect(), inside = e => {
            const r = e.getBoundingClientRect();
            return r.width > 20 && r.left > own.left - 3 && r.right < own.right + 3 && r.bottom < own.bottom + 3;
        };
        const picture = svg.querySelector('image, use').getBoundingClientRect();
        const covers = Math.abs(picture.width - own.width) < 1 && Math.abs(picture.height - own.height) < 1;
        const boxes = [...svg.querySelectorAll('rect')];
        return [covers, boxes.filter(e => !e.matches('.under')).length, boxes.every(inside)];
    })""")
    assert seen == [[True, 3, True]] * 16
    for figure in ("precision-recall", "precision-figures", "precision-classes"):
        tall = f"""[...document.getElementById("{figure}").querySelectorAll("svg")]
            .map(svg => svg.getBoundingClientRect().height).filter(h => h > 100).length"""
        assert browser.ask(tall) == 1
    assert browser.faults == []


def test_the_slider_by_keyboard(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["run"], width=1280)
    drawn = browser.ask(SHOWN)
    assert browser.ask(f"[{SLIDER}.value, {SLIDER}.max]") == ["7", "7"]
    browser.ask(f"{SLIDER}.focus()")
    browser.press("ArrowLeft", 37)
    assert browser.ask(f"{SLIDER}.value") == "6"
    said = browser.ask(f"{SLIDER}.getAttribute('aria-valuetext')")
    assert said.startswith("step 60, epoch 8.57: W as it is: largest ")
    assert browser.ask("document.querySelector('#spectrum-feature .slider span').textContent") == "step 60, epoch 8.57"
    before = browser.ask(SHOWN)
    assert all(a != b for a, b in zip(before, drawn, strict=True))
    assert browser.ask("document.querySelector('#spectrum-feature desc').textContent").startswith("At step 60, epoch")
    browser.press("Home", 36)
    assert browser.ask(f"{SLIDER}.value") == "0"
    browser.press("End", 35)
    assert browser.ask(f"{SLIDER}.value") == "7"
    assert browser.ask(SHOWN) == drawn
    assert browser.faults == []


def test_the_button_plays_and_stops(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["run"], width=1280)
    button = "document.querySelector('#histogram-feature .slider button')"
    value = "document.querySelector('#histogram-feature .slider input').value"
    assert browser.ask(f"{button}.click(), [{button}.textContent, {value}]") == ["Stop", "0"]
    look = f"{button}.textContent === 'Play' ? done() : setTimeout(look, 50)"
    wait = f"new Promise(done => {{ const look = () => {look}; look(); }})"
    browser.call("Runtime.evaluate", expression=wait, awaitPromise=True)
    assert (browser.ask(value), browser.ask(f"{button}.textContent")) == ("7", "Play")


def test_without_its_script_the_last_probe_is_shown(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["run"], width=1280, scripts=False)
    root = browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]

    def count(selector: str) -> int:
        return len(browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])

    assert count("#spectrum-feature .slider[hidden]") == 1
    assert count("#spectrum-feature noscript p") == 1
    assert count("#spectrum-feature path.frame[d^=M]") == 4


def test_a_script_from_the_outside_does_not_run(browser: Browser, pages: dict[str, Path], tmp_path: Path):
    """What would get past the escaping is stopped by the page's policy."""
    text = pages["run"].read_text(encoding="utf-8")
    page = tmp_path / "hostile.html"
    page.write_text(text.replace("</main>", "<script>document.title = 'hostile'</script></main>"), encoding="utf-8")
    browser.open(page, width=1280)
    assert browser.ask("document.title") != "hostile"
    assert any("Content Security Policy" in fault for fault in browser.faults)
