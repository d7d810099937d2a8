"""`python -m adadecode.cli ...` is `adadecode ...` too."""

from adadecode.cli.main import main

if __name__ == "__main__":
    main(prog_name="adadecode")
