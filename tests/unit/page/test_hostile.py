"""Texts that try to be more than text, through a whole run into its page: shown as what they are, and nothing runs."""

import json
import re
import shutil
from pathlib import Path

import pytest

from adadecode.page.build import report_page
from tests.browser import CHROMIUM, browser
from tests.planting import Row, edit_json, plant

HOSTILE = [
    "</script><script>window.ran=1</script>",
    "<img/src=x:x/onerror=window.ran=1>",
    "\"'`><svg/onload=window.ran=1>",
    "\u202eevil\u2066\u200f",
    "\x1b[31mred\x1b]0;title\x07",
    "]]>--><!--<style>*{display:none}</style>",
    "javascript:window.ran=1//",
    "&lt;b&gt;&#60;script&#62;\\u003cscript>",
    "<base/href=https://example.invalid/><link/rel=stylesheet/href=//example.invalid/a.css>",
]
SHOWN = ["<img/src=x:x/onerror=window.ran=1>", "\u27e8U+202E\u27e9evil", "\u27e8U+001B\u27e9[31mred", HOSTILE[7]]
SETTLED = """new Promise(done => { const look = () => document.querySelector("#detail h3") ?
    done(document.body.innerText) : setTimeout(look, 20); look(); })"""


@pytest.fixture(scope="module")
def hostile(tiny, cli, tmp_path_factory) -> Path:
    """A run of a model whose words are HOSTILE, on prompts and under ids that are; one prompt is a line of a megabyte."""
    root = tmp_path_factory.mktemp("hostile")
    model = Path(shutil.copytree(tiny.model, root / "<svg onload=window.ran=1>"))

    def rename(tokenizer: dict) -> None:
        words = tokenizer["model"]["vocab"]
        tokenizer["model"]["vocab"] = {
            f"{HOSTILE[idx % len(HOSTILE)]}{idx}" if re.fullmatch(r"w\d+", word) else word: idx
            for word, idx in words.items()
        }

    edit_json(model / "tokenizer.json", rename)
    prompts = [{"id": f"{text}{idx}", "prompt": f"{text} {text}7"} for idx, text in enumerate(HOSTILE)]
    prompts.append({"id": "long", "prompt": "x" * 1_000_000})
    data = root / "prompts.jsonl"
    data.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
    run = root / "<img src=x onerror=window.ran=1>"
    result = cli("eval", *tiny.flags(model=model, data_file=data, shard_size=20), "--local", "--out", run)
    assert result.exit_code == 0, result.output
    return run


def planted(hostile: Path, run: Path) -> Path:
    """A copy of it with such texts where no pipeline takes them from: categories, references, errors, run.json."""
    shutil.copytree(hostile, run)

    def alter(rows: list[Row]) -> None:
        for row, text in zip(rows, HOSTILE * 9, strict=False):
            row |= {"category": text, "reference": text + "x" * 1_000_000}
        rows[-1] |= {"status": "error", "error_type": HOSTILE[0], "error_message": HOSTILE[1] * 9}

    def alter_run(told: dict) -> None:
        told["config"][HOSTILE[2]] = [HOSTILE[0], "\ud800"]
        told["provenance"]["platform"] = " ".join(HOSTILE)

    plant(run, alter, fits=False)
    edit_json(run / "run.json", alter_run)
    return run


def test_hostile_texts_are_no_markup_of_the_page(hostile, tmp_path):
    page = report_page(planted(hostile, tmp_path / "run")).html
    assert page.count("<script") == page.count("</script>") == 6
    body = page.split("<body>")[1].split("<script")[0]
    assert not re.search(r"<(img|svg|base|link|style)\b", body)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert "&lt;img/src=x:x/onerror=window.ran=1&gt;" in body


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_hostile_texts_are_text_nothing_runs_and_nothing_is_asked_for(hostile, tmp_path):
    file = tmp_path / "run.html"
    file.write_text(report_page(planted(hostile, tmp_path / "run")).html, encoding="utf-8")
    with browser() as tab:
        tab.open(file, 390)
        shown = tab.evaluate(SETTLED)
        assert [text for text in SHOWN if text not in shown] == []
        words = tab.evaluate("[...document.querySelectorAll('.out .tok')].map(word => word.textContent)")
        assert any(word.strip().startswith(tuple(filter(str.isprintable, HOSTILE))) for word in words)
        assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        assert tab.evaluate("typeof window.ran") == "undefined"
        assert tab.evaluate("document.querySelectorAll('body :is(img, style, base, link), main script').length") == 0
        assert [message["params"] for message in tab.messages] == []
        tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
        assert tab.evaluate("typeof window.ran") == "undefined"  # the policy holds even for what would get in
        assert "Content Security Policy" in str(tab.messages)
        assert tab.requests[0].startswith("file://")
        assert {url.partition(":")[0] for url in tab.requests[1:]} <= {"data"}
