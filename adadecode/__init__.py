"""AdaDecode: lossless early-exit decoding, evaluated over whole data sets."""

__version__ = "0.1.0"
