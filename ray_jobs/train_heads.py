"""What a Ray job runs: `python -m ray_jobs.train_heads ...` is `adadecode train-heads ...` on the cluster of the job."""

import sys

from adadecode.cli.main import main

if __name__ == "__main__":
    main(["train-heads", *sys.argv[1:]])
