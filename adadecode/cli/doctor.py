"""`doctor`: what a run would meet, before it is started."""

import sys
from pathlib import Path
from typing import Any

import click

from adadecode.cli.console import say
from adadecode.cli.options import settings_options, some_text
from adadecode.settings import EvalConfig, build_settings


@click.command("doctor")
@settings_options(EvalConfig)
@click.option("--out", callback=some_text, help="Run folder, or s3:// or gs:// URL.  [default: results]")
def doctor_command(config_file: Path | None, out: str | None, **flags: Any) -> None:
    """Say what a run would meet before it is started: put `doctor` in the place of `eval`.

    A line for each check: ok, warning or will fail, with the remedy. Exit code 0: all is ok; 1: there are warnings; 2:
    something will fail.
    """
    from adadecode.api import examine
    from adadecode.doctor.finding import exit_code

    config = build_settings(EvalConfig, config_file, flags)
    findings = []
    for finding in examine(config, out):
        say(finding.line())
        findings.append(finding)
    sys.exit(exit_code(findings))
