"""`python -m adadecode ...` is `adadecode ...`; what a Ray job runs."""

from adadecode.cli.main import main

if __name__ == "__main__":
    main(prog_name="adadecode")
