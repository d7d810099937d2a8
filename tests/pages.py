"""What a page says, read from its HTML: texts, tables, the data of its script."""

import html
import json
import re
from typing import Any


def text_of(page: str) -> str:
    """What a person reads of it without scripts."""
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", " ", shown))


def lead_of(page: str) -> str:
    """Its first sentence."""
    found = re.search(r'<p class="lead">(.*?)</p>', page, re.S)
    assert found is not None
    return html.unescape(re.sub(r"<[^>]+>", "", found[1]))


def data_of(page: str) -> dict[str, Any]:
    """What its script is given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def table_of(page: str, caption: str) -> list[dict[str, str]]:
    """The rows of the table whose caption begins with `caption`, by the heads of its columns."""
    found = re.search(rf"<table><caption>{re.escape(html.escape(caption))}[^<]*</caption>(.*?)</table>", page, re.S)
    assert found is not None, caption
    heads, *rows = (re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", row, re.S) for row in found[1].split("</tr>")[:-1])
    return [
        {head: html.unescape(re.sub(r"<[^>]+>", "", value)) for head, value in zip(heads, row, strict=True)}
        for row in rows
    ]
