"""Frozen settings. The command line builds them; nothing else reads flags or the environment."""

import hashlib
import json
import math
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adadecode.errors import UsageError

Dtype = Literal["float32", "bfloat16", "float16"]
HeadKind = Literal["full", "shortlist"]
TrainedKind = Literal["transform", "low-rank", "full", "shortlist", "original"]
Kernels = Literal["auto", "native", "eager", "compile"]
Method = Literal["vanilla", "vanilla-w1", "adadecode", "adadecode-unverified", "transformers"]
ShapeName = Literal["llama-3.1-8b", "llama-3.2-1b", "qwen3-8b", "llama-160m"]

# Settings that say where, with how many hands and how patiently a run is done, not what it computes.
PLACEMENT_FIELDS = {"workers", "local", "address", "threads", "deadline_s", "grace_s", "max_errors", "retry_errors"}

DRAFTING_METHODS: frozenset[Method] = frozenset({"adadecode", "adadecode-unverified"})  # those that need heads
ORIGINAL_HEADS = "original"  # instead of a folder: the model's own norm and LM head at every exit

DEMO_POLICY = Path(__file__).parent / "demo" / "policy.yaml"


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def increasing(exits: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """`exits`; raises ValueError unless they can be exit layers of some model."""
    if exits is not None and (not exits or exits[0] < 1 or any(a >= b for a, b in pairwise(exits))):
        raise ValueError("exit layers must increase and lie in 1..L-1, such as 4,8,12")
    return exits


def allowed_errors(max_errors: str, num_planned: int) -> int:
    """How many of `num_planned` samples may fail under `max_errors`: N, or P% of them rounded up.

    Raises ValueError unless it is a whole number from 0 on or 0 to 100 percent.
    """
    number = re.fullmatch(r"([0-9]{1,18})|([0-9]{1,3}(?:\.[0-9]{1,9})?)%", max_errors)
    if number is None or (number[2] and Fraction(number[2]) > 100):
        raise ValueError("give the samples that may fail as a number from 0 on, or as 0% to 100% of them, such as 5%")
    return int(number[1]) if number[1] else math.ceil(Fraction(number[2]) * num_planned / 100)


class DecodeSettings(Settings):
    """How tokens are decoded. Defaults are the paper's (section 4: gamma 0.75, at most 5 drafts, 512 new tokens).

    `policy` names where the settings come from that are not given: `paper`, `demo` or a YAML file of settings.
    """

    policy: str = "paper"
    gamma: float | tuple[float, ...] = 0.75  # one for all exits, or one for each
    exits: tuple[int, ...] | None = None  # None: the paper's, or all the heads have where they lack one of them
    max_drafts: int = Field(5, ge=0, le=64)
    head: HeadKind = "full"
    gate: float = Field(0.0, ge=0.0, le=1.0)  # skip the test of a head that is right with less probability
    reject: float | None = Field(None, ge=0.0, le=1.0)  # confidence of a deeper head that rejects a draft early
    ngram: float | None = Field(None, ge=0.0, lt=1.0)  # gamma of the n-gram drafter; None: no such drafts
    max_new_tokens: int = Field(512, ge=1)

    @field_validator("gamma")
    @classmethod
    def _gamma_is_a_probability(cls, gamma: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not all(0.0 <= g <= 1.0 for g in (gamma if isinstance(gamma, tuple) else (gamma,))):
            raise ValueError("the exit threshold must lie in [0, 1]; 1 drafts nothing")
        return gamma

    @field_validator("exits")
    @classmethod
    def _exits_increase(cls, exits: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return increasing(exits)


def check_original_heads(heads: str | None, decode: DecodeSettings) -> None:
    """Raises ValueError when `heads` are the original ones and `decode` wants what only trained heads have."""
    if heads == ORIGINAL_HEADS and (decode.head != "full" or decode.gate > 0.0):
        raise ValueError(
            f"--heads original is the model's own LM head, so --head must be full and --gate 0, not {decode.head} and "
            f"{decode.gate:g}: give them, or --policy paper"
        )


class EvalConfig(Settings):
    """One evaluation run. The resolved form is stored in run.json; `fingerprint` ties a run folder to it."""

    model: str = "demo"
    revision: str | None = None
    heads: str | None = None  # None: the demo's heads for the task's domain; required for other models; or `original`
    task: str = "demo"
    data_file: str | None = None
    prompt_field: str = "prompt"
    offset: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)
    methods: tuple[Method, ...] = ("vanilla", "vanilla-w1", "adadecode")
    decode: DecodeSettings = DecodeSettings()  # pyright: ignore[reportCallIssue]
    dtype: Dtype = "bfloat16"
    device: Literal["cpu", "cuda"] = "cpu"
    kernels: Kernels = "auto"
    repeats: int = Field(1, ge=1)
    warmup: int = Field(1, ge=0)  # generations per method and worker before anything is measured
    shard_size: int = Field(4, ge=1)
    check_logits: bool = True
    workers: int | Literal["auto"] = 1  # auto: what the cluster holds, and what joins it
    threads: int | None = Field(None, ge=1)  # per worker; None: cores // workers
    local: bool = False
    address: str | None = None
    deadline_s: float = Field(60.0, gt=0.0)  # the least a shard may take before its worker counts as hung
    grace_s: float = Field(20.0, ge=0.0)  # for shards in flight when the run is asked to stop
    max_errors: str = "5%"  # samples that may fail before the run stops: N, or P% of those planned
    retry_errors: bool = False  # computes shards with samples that failed again

    @field_validator("workers", mode="before")
    @classmethod
    def _workers_is_a_number_or_auto(cls, workers: Any) -> Any:
        if workers != "auto" and (type(workers) is not int or workers < 1):
            raise ValueError("give a number from 1 on, or auto: as many as the cluster holds, also later")
        return workers

    @field_validator("max_errors", mode="before")
    @classmethod
    def _max_errors_is_a_number_or_a_share(cls, max_errors: Any) -> Any:
        text = str(max_errors) if type(max_errors) is int else max_errors  # YAML reads a bare number as one
        if isinstance(text, str):
            allowed_errors(text, 0)
        return text

    @field_validator("methods")
    @classmethod
    def _methods_hold_vanilla(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if "vanilla" not in methods or len(set(methods)) != len(methods):
            raise ValueError("methods must be distinct and include vanilla, which every other method is compared with")
        return methods

    @model_validator(mode="after")
    def _local_has_one_worker(self) -> Self:
        if self.local and (self.workers != 1 or self.address is not None):
            raise ValueError("a local run has one worker and no cluster: drop --local, or --workers and --address")
        return self

    @model_validator(mode="after")
    def _original_heads_are_full(self) -> Self:
        check_original_heads(self.heads, self.decode)
        return self

    def fingerprint(self, **facts: str | None) -> str:
        """Hash of all that decides the results: these settings less placement, and `facts` such as file hashes."""
        decisive = {**self.model_dump(mode="json", exclude=PLACEMENT_FIELDS), **facts}
        canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class TrainConfig(Settings):
    """One training of exit heads."""

    model: str = "demo"
    revision: str | None = None
    task: str  # no default: heads trained on the prompts they are judged by would look better than they are
    data_file: str | None = None
    prompt_field: str = "prompt"
    offset: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=2)
    kind: TrainedKind = "transform"
    rank: int | None = Field(None, ge=1)  # of low-rank heads; None: 32
    exits: tuple[int, ...] | None = None  # None: L/4, L/2, 3L/4
    max_new_tokens: int = Field(256, ge=1)
    dtype: Dtype = "bfloat16"
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0
    epochs: int = Field(8, ge=1)
    batch_tokens: int = Field(1024, ge=1)
    learning_rate: float = Field(1e-3, gt=0.0)
    held_out: float = Field(0.1, gt=0.0, lt=1.0)
    kl_top_k: int | None = Field(None, ge=1)  # None: the whole vocabulary
    shortlist_len: int | None = Field(None, ge=1)  # None: a quarter of the vocabulary, at most 32768
    outputs: str | None = None  # the folder of other heads whose outputs are taken; None: their own
    part_prompts: int = Field(512, ge=1)  # prompts whose outputs are one file, the unit of work and of resuming
    workers: int | None = Field(None, ge=1)  # None: in this process, without Ray
    address: str | None = None
    threads: int | None = Field(None, ge=1)

    @field_validator("exits")
    @classmethod
    def _exits_increase(cls, exits: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return increasing(exits)

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        if self.rank is not None and self.kind != "low-rank":
            raise ValueError(f"--rank {self.rank}: only heads of --kind low-rank have one, not {self.kind}; drop it")
        if self.kl_top_k is not None and self.kind in ("shortlist", "original"):
            raise ValueError(f"--kl-top-k {self.kl_top_k}: --kind {self.kind} trains on no such KL; drop it")
        unused = {"epochs", "learning_rate"} & self.model_fields_set if self.kind == "original" else set()
        if unused:
            flags = ", ".join(sorted("--" + name.replace("_", "-") for name in unused))
            raise ValueError(f"--kind original trains nothing: drop {flags}")
        if self.address is not None and self.workers is None:
            raise ValueError(f"--address {self.address}: without --workers no cluster is used; give both or neither")
        return self


class TuneConfig(Settings):
    """One search for the best policy of a model on a machine."""

    model: str = "demo"
    revision: str | None = None
    heads: str | None = None  # None: the demo's heads for the task's domain; required for other models
    task: str = "demo"
    data_file: str | None = None
    prompt_field: str = "prompt"
    offset: int = Field(0, ge=0)
    limit: int | None = Field(96, ge=8)  # per task
    exits: tuple[int, ...] | None = None  # candidates; None: all the heads have
    head: HeadKind | None = None  # None: shortlist when the heads have one
    max_drafts: int = Field(5, ge=1, le=7)  # the most that are considered
    max_new_tokens: int = Field(256, ge=2)
    held_out: float = Field(0.25, gt=0.0, lt=1.0)  # share of the prompts that the search does not see
    folds: int = Field(5, ge=2)
    repeats: int = Field(3, ge=1)  # measurements of each held-out prompt and policy
    seed: int = 0
    dtype: Dtype = "bfloat16"
    device: Literal["cpu", "cuda"] = "cpu"
    kernels: Kernels = "auto"
    threads: int | None = Field(None, ge=1)

    @field_validator("exits")
    @classmethod
    def _exits_increase(cls, exits: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return increasing(exits)


class BenchDecodeSettings(DecodeSettings):
    max_new_tokens: int = Field(128, ge=1)


class BenchConfig(Settings):
    """One measurement of speed, with the weights of `model` or synthetic ones of the size `shape`."""

    model: str = "demo"
    shape: ShapeName | None = None
    revision: str | None = None
    heads: str | None = None  # None: the demo's heads for the task's domain; required for other models
    task: str = "demo"
    data_file: str | None = None
    prompt_field: str = "prompt"
    offset: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)  # None: a few
    methods: tuple[Method, ...] = ("vanilla", "vanilla-w1", "adadecode")
    decode: BenchDecodeSettings = BenchDecodeSettings()  # pyright: ignore[reportCallIssue]
    dtype: Dtype = "bfloat16"
    device: Literal["cpu", "cuda"] = "cpu"
    kernels: Kernels = "auto"
    repeats: int = Field(5, ge=1)  # after one that is not recorded
    threads: int | None = Field(None, ge=1)

    @field_validator("methods")
    @classmethod
    def _methods_hold_vanilla(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        return EvalConfig._methods_hold_vanilla(methods)

    @model_validator(mode="after")
    def _original_heads_are_full(self) -> Self:
        check_original_heads(self.heads, self.decode)
        return self

    @model_validator(mode="after")
    def _shape_stands_alone(self) -> Self:
        beside = {"model", "revision", "heads", "task", "data_file", "prompt_field", "offset"} & self.model_fields_set
        if self.shape is not None and beside:
            flags = ", ".join(sorted("--" + name.replace("_", "-") for name in beside))
            raise ValueError(f"--shape {self.shape} has synthetic weights, heads and prompts: drop it, or {flags}")
        return self

    @property
    def name(self) -> str:
        return self.shape or self.model


SettingsT = TypeVar("SettingsT", bound=Settings)


def build_settings(kind: type[SettingsT], config_file: Path | None, flags: dict[str, Any]) -> SettingsT:
    """`kind` from a YAML file overlaid with the flags that were given; a bad value becomes one line."""
    values = {} if config_file is None else read_settings(config_file)
    if "cells" in values:
        raise UsageError(f"{config_file}: it has `cells`, which are a sweep's: run it with `adadecode sweep`")
    return settings_of(kind, values, given_flags(flags))


def given_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """`flags` less those that were not given."""
    return {name: value for name, value in flags.items() if value is not None}


def read_settings(config_file: Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings."""
    try:
        loaded = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{config_file}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("decode", {}), dict):
        raise UsageError(f"{config_file}: expected a mapping of settings, such as `task: gsm8k`, and one in `decode`")
    return loaded


def settings_of(kind: type[SettingsT], *layers: dict[str, Any]) -> SettingsT:
    """`kind` from `layers` of settings, each laid over those before it.

    The settings of `decode` may also stand flat beside the others, as the flags do. A bad value becomes one line.
    """
    values: dict[str, Any] = {}
    decode: dict[str, Any] = {}
    flat = set(DecodeSettings.model_fields) if "decode" in kind.model_fields else set()
    for layer in layers:
        layer = dict(layer)
        decode |= layer.pop("decode", {}) if flat else {}
        decode |= {name: layer.pop(name) for name in flat & layer.keys()}
        values |= layer
    if flat:
        is_demo = values.get("model", "demo") == "demo" and values.get("shape") is None
        name = decode.setdefault("policy", "demo" if is_demo else "paper")
        values["decode"] = {**read_policy(name), **decode}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError("; ".join(_one_line(problem) for problem in error.errors())) from None


def read_policy(name: str) -> dict[str, Any]:
    """The decode settings of policy `name`: nothing for `paper`, whose settings are the defaults, else a YAML file's."""
    if name == "paper":
        return {}
    file = DEMO_POLICY if name == "demo" else Path(name)
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(
            f"--policy {name!r}: give paper, demo or a YAML file of decode settings ({' '.join(str(error).split())})"
        ) from error
    if not isinstance(settings, dict):
        raise UsageError(f"--policy {name!r}: expected a mapping of decode settings, such as `gamma: 0.7`")
    settings.pop("tuned", None)  # what `tune` says of it; decides nothing
    unknown = set(settings) - set(DecodeSettings.model_fields)
    if unknown:
        raise UsageError(f"--policy {name!r}: {', '.join(sorted(map(str, unknown)))} is not among the decode settings")
    return settings


def _one_line(problem: Any) -> str:
    names = [part for part in problem["loc"] if isinstance(part, str)]  # the others count items of a list
    flag = "--" + names[-1].replace("_", "-") if names else "settings"
    value = problem["input"]
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else repr(value)
    return f"{flag}{'' if isinstance(value, dict) else f' {shown}'}: {problem['msg'].removeprefix('Value error, ')}"
