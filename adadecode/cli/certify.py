"""`certify`: two servers, the same prompts; and what `report` and `verify` print of such a run."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadecode.cli.console import console, resume_command, say, say_on_stderr
from adadecode.cli.options import settings_options, some_text
from adadecode.evaluation.stop import StopRequest
from adadecode.settings import CertifyConfig, build_settings

if TYPE_CHECKING:
    from adadecode.certify.result import CertifyResult


@click.command("certify")
@settings_options(CertifyConfig)
@click.option(
    "--out",
    callback=some_text,
    help="Run folder, or s3:// or gs:// URL.  [default: results/certify-<fingerprint>]",
)
def certify_command(config_file: Path | None, out: str | None, **flags: Any) -> None:
    """Find out whether a server is exact: greedy outputs of two OpenAI-compatible servers, compared and timed.

    API keys are taken from ADADECODE_BASELINE_API_KEY and ADADECODE_CANDIDATE_API_KEY and written nowhere. Rerun the same
    command to finish what is missing or failed. Exit code 3: the candidate differs more than the baseline from itself.
    """
    from adadecode import api
    from adadecode.certify.asking import key_variable
    from adadecode.certify.compare import SIDES
    from adadecode.printable import without_password

    config = build_settings(CertifyConfig, config_file, flags)
    keys = {side: key for side in SIDES if (key := os.environ.get(key_variable(side)))}
    with StopRequest(config.grace_s, say_on_stderr) as stop:
        result = api.certify(config, out, keys=keys, say=say, stop=stop)
        sys.exit(print_certification(result, without_password(resume_command())))


def print_certification(result: "CertifyResult", resume: str | None = None) -> int:
    """Prints the table and the lines of a certification, and why the exit code is not 0 on stderr; returns the code."""
    from adadecode.certify.table import certify_table

    console().print(certify_table(result.summary))
    for line in result.lines():
        say(line)
    for line in result.problem_lines(resume):
        say_on_stderr(line)
    return result.exit_code
