"""AdaDecode: lossless early-exit decoding, evaluated over whole data sets."""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from adadecode.version import __version__

if TYPE_CHECKING:
    from adadecode.api import certify, evaluate, examine, recompute, run_bench, score, train_heads, tune
    from adadecode.bench.result import BenchResult
    from adadecode.certify.result import CertifyResult
    from adadecode.doctor.finding import Finding
    from adadecode.errors import AdaDecodeError, UsageError
    from adadecode.evaluation.observer import Observer, Quiet
    from adadecode.evaluation.recompute import Recomputed
    from adadecode.evaluation.stop import StopRequest
    from adadecode.language_model import LanguageModel, Output, Stream, load
    from adadecode.methods import METHODS, Method
    from adadecode.records import Generation, Message, Piece
    from adadecode.runs.result import RunResult
    from adadecode.runs.scores import RunScores
    from adadecode.scoring.sandbox import Sandbox
    from adadecode.settings import (
        BenchConfig,
        CertifyConfig,
        DecodeSettings,
        EvalConfig,
        GenerateConfig,
        TrainConfig,
        TuneConfig,
    )
    from adadecode.tuning.result import TuneResult

# Where each public name is; its module is imported when the name is first used.
_HOMES = {
    "adadecode.api": ("certify", "evaluate", "examine", "recompute", "run_bench", "score", "train_heads", "tune"),
    "adadecode.language_model": ("LanguageModel", "Output", "Stream", "load"),
    "adadecode.doctor.finding": ("Finding",),
    "adadecode.errors": ("AdaDecodeError", "UsageError"),
    "adadecode.bench.result": ("BenchResult",),
    "adadecode.certify.result": ("CertifyResult",),
    "adadecode.evaluation.observer": ("Observer", "Quiet"),
    "adadecode.evaluation.recompute": ("Recomputed",),
    "adadecode.evaluation.stop": ("StopRequest",),
    "adadecode.runs.result": ("RunResult",),
    "adadecode.runs.scores": ("RunScores",),
    "adadecode.scoring.sandbox": ("Sandbox",),
    "adadecode.tuning.result": ("TuneResult",),
    "adadecode.methods": ("METHODS", "Method"),
    "adadecode.records": ("Generation", "Message", "Piece"),
    "adadecode.settings": (
        "BenchConfig",
        "CertifyConfig",
        "DecodeSettings",
        "EvalConfig",
        "GenerateConfig",
        "TrainConfig",
        "TuneConfig",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "AdaDecodeError",
    "BenchConfig",
    "BenchResult",
    "CertifyConfig",
    "CertifyResult",
    "DecodeSettings",
    "EvalConfig",
    "Finding",
    "GenerateConfig",
    "Generation",
    "LanguageModel",
    "Message",
    "Method",
    "Observer",
    "Output",
    "Piece",
    "Quiet",
    "Recomputed",
    "RunResult",
    "RunScores",
    "Sandbox",
    "StopRequest",
    "Stream",
    "TrainConfig",
    "TuneConfig",
    "TuneResult",
    "UsageError",
    "__version__",
    "certify",
    "evaluate",
    "examine",
    "load",
    "recompute",
    "run_bench",
    "score",
    "train_heads",
    "tune",
]

# Silent unless the program that runs asks for it: a worker process with `configure_worker_log`, others as they log
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
