"""Frozen settings. The command line builds them, or a program does; nothing else reads flags or the environment."""

from adadecode.settings.configs import (
    BenchConfig,
    DecodingSettings,
    EvalConfig,
    GenerateConfig,
    ShapeName,
    TrainConfig,
    TrainedKind,
    TuneConfig,
)
from adadecode.settings.groups import (
    ORIGINAL_HEADS,
    DataSettings,
    DecodeSettings,
    Domain,
    Dtype,
    Flag,
    HeadKind,
    HeadsSettings,
    Kernels,
    MethodName,
    ModelSettings,
    Settings,
    allowed_errors,
)
from adadecode.settings.policy import read_policy
from adadecode.settings.reading import build_settings, given_flags, read_settings, settings_of

__all__ = [
    "ORIGINAL_HEADS",
    "BenchConfig",
    "DataSettings",
    "DecodeSettings",
    "DecodingSettings",
    "Domain",
    "Dtype",
    "EvalConfig",
    "Flag",
    "GenerateConfig",
    "HeadKind",
    "HeadsSettings",
    "Kernels",
    "MethodName",
    "ModelSettings",
    "Settings",
    "ShapeName",
    "TrainConfig",
    "TrainedKind",
    "TuneConfig",
    "allowed_errors",
    "build_settings",
    "given_flags",
    "read_policy",
    "read_settings",
    "settings_of",
]
