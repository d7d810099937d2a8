"""The run that is looked at: its settings, and what several checks need of its files, read once."""

import functools
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
