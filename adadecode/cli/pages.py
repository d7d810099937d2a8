"""Pages as files: where a report's page goes, and how a comparison's is written."""

from collections.abc import Sequence
from pathlib import Path

from adadecode.cli.console import say, say_on_stderr
from adadecode.errors import RunFolderError
from adadecode.files import whole_file


def write_report(runs: Sequence[str], out: Path | None) -> int:
    """Writes the page of `runs` and says where it is, and why their exit code, which it returns, is not 0."""
    from adadecode.page.build import report_page

    page = report_page(*runs)
    is_folder = len(runs) == 1 and "://" not in runs[0]
    say(write_page(page.html, out or (Path(runs[0]) / "report.html" if is_folder else Path("report.html")), "--out"))
    for line in page.problems:
        say_on_stderr(line)
    return page.exit_code


def write_page(html: str, file: Path, flag: str) -> str:
    """Writes a page to `file`, whole or not at all; returns a line that says so. `flag` named the file."""
    try:
        with whole_file(file) as temporary:
            temporary.write_text(html, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(
            f"{flag} {str(file)!r} cannot be written: {error.strerror or error}; give another file"
        ) from error
    return f"page: {file} ({len(html) / 1e6:.1f} MB)"
