"""`adadecode`, whose actors wait at the gate of their run: `python -m tests.integration.chaos.gated eval ...`."""

import functools

from adadecode.cli.main import main
from ray_jobs import evaluation
from tests.integration.chaos.faults import GATED

if __name__ == "__main__":
    evaluation.run_on_ray = functools.partial(evaluation.run_on_ray, actor_class=GATED)
    main()
