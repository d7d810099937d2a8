"""A grid of evaluations on the cluster a Ray job belongs to: `python -m ray_jobs.sweep ...` is `adadecode sweep ...`."""

import sys

from adadecode.cli.main import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
