"""The HTML report: one page of a run or a sweep that needs no network, made of its committed rows."""
