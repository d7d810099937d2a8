"""How many cases a fuzz tries: few in `make test`, NUM_WHOLE each in `make fuzz`. Fixed seeds: a failure repeats."""

import os

from hypothesis import HealthCheck, settings

NUM_FEW, NUM_WHOLE = 60, 2000

settings.register_profile(
    "fuzz",
    max_examples=NUM_WHOLE if os.environ.get("ADADECODE_FUZZ") == "whole" else NUM_FEW,
    deadline=20_000,  # ms for one case: bounded in time
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# What every fuzz is decorated with, above `given`.
fuzzed = settings.get_profile("fuzz")
