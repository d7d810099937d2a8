"""The page in headless Chromium: nothing runs over, nothing is on the console, keys work, a large one opens at once."""

from pathlib import Path

import pytest

from adadecode.page.build import report_page
from tests.browser import CHROMIUM, Page, browser
from tests.large_run import grow

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
OVER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CHOSEN = """new Promise(done => { const look = () => {
    const chosen = document.querySelector("[aria-selected=true]"), told = document.querySelector("#detail h3");
    if (chosen && told && told.textContent.endsWith(chosen.firstChild.textContent)) done(told.textContent);
    else setTimeout(look, 20); }; look(); })"""
A4 = 718  # CSS pixels of its width without margins
MOST_MS = 3000
NUM_SAMPLES = 10_000


def written(folder: Path, file: Path) -> Path:
    file.write_text(report_page(folder).html, encoding="utf-8")
    return file


def press(tab: Page, *keys: str) -> str:
    """The sample that is shown after `keys`."""
    for key in keys:
        for event in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=event, key=key)
    return tab.evaluate(CHOSEN)


def test_nothing_runs_over_on_a_screen_a_phone_or_paper_and_the_console_is_empty(made, sweep, tmp_path):
    files = [written(made, tmp_path / "run.html"), written(sweep, tmp_path / "sweep.html")]
    with browser() as tab:
        for file in files:
            for width, media in ((1280, ""), (390, ""), (A4, "print")):
                tab.call("Emulation.setEmulatedMedia", media=media)
                tab.open(file, width)
                assert tab.evaluate(OVER) == 0, (file, width)
                drawn = "[...document.querySelectorAll('.chart')].filter(chart => chart.querySelector('svg')).length"
                assert tab.evaluate(drawn) == tab.evaluate("document.querySelectorAll('.chart').length") > 0
        assert [message["params"] for message in tab.messages] == []


def test_keys_choose_samples_and_drafts_have_the_colour_of_their_layer_or_are_struck_through(made, tmp_path):
    with browser() as tab:
        tab.open(written(made, tmp_path / "run.html"), 1280)
        first = tab.evaluate(CHOSEN)
        tab.evaluate("document.getElementById('list').focus()")
        second, last, before_last, again = (press(tab, key) for key in ("ArrowDown", "End", "ArrowUp", "Home"))
        assert again == first
        assert len({first, second, last, before_last}) == 4
        active = tab.evaluate("document.getElementById('list').getAttribute('aria-activedescendant')")
        assert tab.evaluate(f"document.getElementById('{active}').getAttribute('aria-selected')") == "true"
        colours = tab.evaluate("""[...document.querySelectorAll("del.tok, .out .tok[class*=' e']")]
            .map(token => [token.tagName, token.title, getComputedStyle(token).backgroundColor])""")
        assert {tag for tag, _, _ in colours} == {"DEL", "SPAN"}
        assert all(title.startswith("rejected: " if tag == "DEL" else "drafted at ") for tag, title, _ in colours)
        layers = {(title.partition("drafted at ")[2].partition(" in round")[0], colour) for _, title, colour in colours}
        assert len({layer for layer, _ in layers}) == len({colour for _, colour in layers}) == len(layers) > 1


@pytest.mark.slow
def test_a_page_of_10_000_samples_opens_within_3_seconds(cli, tmp_path):
    small, flags = tmp_path / "small", ("--task", "demo-math", "--limit", 1, "--max-new-tokens", 64, "--threads", 1)
    assert cli("eval", *flags, "--local", "--out", small).exit_code == 0
    file = written(grow(small, tmp_path / "large", NUM_SAMPLES, shard_size=64), tmp_path / "page.html")
    took = []
    for _ in range(3):
        with browser() as tab:
            took.append(tab.open(file, 1280))
            assert tab.evaluate("document.getElementById('count').textContent") == "10000 of 10000 samples"
            tab.evaluate("document.getElementById('list').focus()")
            assert press(tab, "End").endswith(f"sample-{NUM_SAMPLES - 1:06d}")
    assert min(took) < MOST_MS
