"""What a Ray job runs: `python -m ray_jobs.evaluate ...` is `adadecode eval ...` on the cluster the job belongs to."""

import sys

from adadecode.cli.main import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
