"""AdaDecode: lossless early-exit decoding, evaluated over whole data sets."""

import logging

__version__ = "0.1.0"

# Silent unless the program that runs asks for it: a worker process with `configure_worker_log`, others as they log
logging.getLogger(__name__).addHandler(logging.NullHandler())
