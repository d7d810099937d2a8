"""The document: one file whose Content-Security-Policy names its own scripts and styles by hash and allows no others."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from adadecode.page.content import esc

SCRIPTS = ("vendor/vega.min.js", "vendor/vega-lite.min.js", "vendor/vega-interpreter.js", "assets/page.js")
STYLE = "assets/page.css"
# A module of one import and one export: names, body, name inside, name outside
MODULE = re.compile(r"import \{(.*?)\} from 'vega-util';\n(.*)export \{ (\w+) as (\w+) \};\n?", re.S)


def document(title: str, body: str, data: dict[str, Any], blocks: Sequence[str]) -> str:
    """The page `body` with `data` and `blocks` of samples, which its script reads, and the licences of its scripts."""
    scripts = [_script(name) for name in SCRIPTS]
    style = _element(STYLE, _file(STYLE))
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source, scripts))}; style-src {_source(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    terms = esc(licences(), keep="\n")
    held = "".join(f'<script type="text/plain" class="block">{block}</script>\n' for block in blocks)
    code = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<title>{esc(title)}</title>\n<link rel="icon" href="data:,">\n<style>{style}</style>\n</head>\n<body>\n{body}\n'
        f"<footer><details><summary>Licences of the chart library, Vega-Lite</summary>"
        f'<pre tabindex="0" role="group" aria-label="Licences">{terms}</pre>'
        "</details></footer>\n"
        f'<script type="application/json" id="data">{_json(data)}</script>\n{held}{code}</body>\n</html>\n'
    )


def licences() -> str:
    """The licences of the chart library and of all that is bundled in it."""
    return _file("vendor/LICENSES.txt")


def _script(name: str) -> str:
    """A file of this package as a script of a page: without a source map's name, and a module as a function over `vega`."""
    text = re.sub(r"\n?//# sourceMappingURL=\S+\n?$", "", _file(name))
    parts = MODULE.fullmatch(text)
    if parts is not None:
        imported, body, inner, outer = parts.groups()
        text = f"(() => {{\n'use strict';\nconst {{{imported}}} = vega;\n{body}vega.{outer} = {inner};\n}})();\n"
    return _element(name, text)


def _element(name: str, text: str) -> str:
    assert not re.search(r"</(script|style)|<!--", text, re.I), name  # it would end the element, or not end there
    return text


def _file(name: str) -> str:
    return resources.files("adadecode.page").joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that ends no element and begins none, in ASCII."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
