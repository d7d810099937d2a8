"""Groups of settings that the configurations are composed of; a field's description is its only text.

No module but this room knows a default: the flags, their help and docs/cli.md are made from these fields.
"""

import difflib
import math
import re
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from adadecode.methods import DEFAULT_METHODS, METHODS, REFERENCE
from adadecode.settings.fields import Flag, Settings
from adadecode.settings.rivals import MAX_DRAFTS, MAX_LAYERS, RivalSettings
from adadecode.settings.selector import SELECTOR_TEXT, LabelSelector

Dtype = Literal["float32", "bfloat16", "float16"]
Device = Literal["cpu", "cuda"]
HeadKind = Literal["full", "shortlist"]
Kernels = Literal["auto", "native", "eager", "graphs", "compile", "transformers"]
Domain = Literal["math", "code"]
Stop = Literal["token", "chain"]

# Above them a number is a slip, and would end in another library's error: it overflows, or no machine holds so many.
MAX_COUNT = 10**9  # samples, tokens
MAX_REPEATS = 10**6
MAX_WARMUP = 1000
MAX_SHOTS = 1000
MAX_THREADS = 1024
MAX_WORKERS = 10**5
MAX_TRACED = 32  # tokens: a trace has about a megabyte of each before it is packed
MAX_GPUS = 64  # of a node
MAX_SECONDS = 1e7
MAX_SEED = 2**32 - 1


def increasing(exits: tuple[int, ...]) -> tuple[int, ...]:
    """`exits`; raises ValueError unless they can be exit layers of some model."""
    if not exits or not 1 <= exits[0] <= exits[-1] <= MAX_LAYERS or any(a >= b for a, b in pairwise(exits)):
        raise ValueError("exit layers must increase and lie in 1..L-1, such as 4,8,12")
    return exits


def increasing_or_none(exits: tuple[int, ...]) -> tuple[int, ...]:
    """`exits`, none of them where n-grams alone draft; raises ValueError unless they can be exit layers of some model."""
    return increasing(exits) if exits else exits


def probabilities(gamma: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """`gamma`; raises ValueError unless every threshold is a probability."""
    if not all(0.0 <= g <= 1.0 for g in (gamma if isinstance(gamma, tuple) else (gamma,))):
        raise ValueError("the exit threshold must lie in [0, 1]; 1 drafts nothing")
    return gamma


def known(method: str) -> str:
    """`method`; raises ValueError, with the one that was probably meant, unless it is a row of the table."""
    if method not in METHODS:
        *others, last = (f"'{name}'" for name in METHODS)
        close = difflib.get_close_matches(method.lower().replace("_", "-"), METHODS, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{meant}Input should be {', '.join(others)} or {last}")
    return method


def with_reference(methods: tuple[str, ...]) -> tuple[str, ...]:
    """`methods`; raises ValueError unless they are distinct and vanilla is among them."""
    if REFERENCE not in methods or len(set(methods)) != len(methods):
        raise ValueError("methods must be distinct and include vanilla, which every other method is compared with")
    return methods


def number_or_auto(workers: Any) -> Any:
    """`workers`; raises ValueError unless it is a number from 1 to MAX_WORKERS or `auto`."""
    number = int(workers) if isinstance(workers, str) and re.fullmatch("[0-9]{1,9}", workers) else workers
    if number != "auto" and (type(number) is not int or not 1 <= number <= MAX_WORKERS):
        raise ValueError(f"give a number from 1 to {MAX_WORKERS}, or auto: as many as the cluster holds, also later")
    return number


def number_or_share(max_errors: Any) -> Any:
    """`max_errors` as text: YAML reads a bare number as one. Raises ValueError unless it says how many samples may fail."""
    text = str(max_errors) if type(max_errors) is int else max_errors
    if isinstance(text, str):
        allowed_errors(text, 0)
    return text


def allowed_errors(max_errors: str, num_planned: int) -> int:
    """How many of `num_planned` samples may fail under `max_errors`: N, or P% of them rounded up.

    Raises ValueError unless it is a whole number from 0 on or 0 to 100 percent.
    """
    number = re.fullmatch(r"([0-9]{1,18})|([0-9]{1,3}(?:\.[0-9]{1,9})?)%", max_errors)
    if number is None or (number[2] and Fraction(number[2]) > 100):
        raise ValueError("give the samples that may fail as a number from 0 on, or as 0% to 100% of them, such as 5%")
    return int(number[1]) if number[1] else math.ceil(Fraction(number[2]) * num_planned / 100)


Exits = Annotated[tuple[int, ...], AfterValidator(increasing)]
PolicyExits = Annotated[tuple[int, ...], AfterValidator(increasing_or_none)]
MethodName = Annotated[str, AfterValidator(known)]
MethodNames = Annotated[tuple[MethodName, ...], AfterValidator(with_reference)]
Address = Annotated[str | None, Flag(unset="RAY_ADDRESS, else a cluster started on this machine")]

# what several fields say that differ in their defaults or ranges
LIMIT_TEXT = "Only the first N samples of each task, after --offset."
MAX_NEW_TOKENS_TEXT = "Longest output, in tokens."
HEAD_TEXT = "What an exit test runs: the whole vocabulary, or a shortlist of frequent tokens."
ADDRESS_TEXT = "HOST:PORT of a running Ray head"  # each field adds its end

METHODS_TEXT = "Methods with commas: " + "; ".join(f"{name}, {method.what}" for name, method in METHODS.items()) + "."


class ModelSettings(Settings):
    """Which model is decoded, and by what."""

    model: str = Field(
        default="demo", description="`demo`, a folder with a transformers model, a GGUF file, or a hub id."
    )
    revision: Annotated[str | None, Flag(unset="the newest")] = Field(
        default=None, description="Revision of a model on the hub."
    )
    dtype: Dtype = Field(default="bfloat16", description="What the weights are loaded in.")
    device: Device = Field(default="cpu", description="Where decoding runs.")
    gpus_per_worker: int = Field(
        default=1,
        ge=1,
        le=MAX_GPUS,
        description="GPUs of one node over which the layers of a model are spread that is too large for one.",
    )
    kernels: Kernels = Field(
        default="auto",
        description="Who computes: native a CPU with a C++ compiler; on CUDA graphs, eager does without; transformers runs "
        "the model's own layers, of any family; auto what works.",
    )

    @model_validator(mode="after")
    def _only_gpus_are_several(self) -> Self:
        if self.gpus_per_worker > 1 and self.device != "cuda":
            raise ValueError(
                f"--gpus-per-worker {self.gpus_per_worker}: --device {self.device} has none; drop it, or give --device cuda"
            )
        return self


class DataSettings(Settings):
    """Which samples are decoded."""

    task: str = Field(default="demo", description="A data set of `adadecode tasks`; demo is both embedded ones.")
    data_file: Annotated[str | None, Flag(unset="the hub")] = Field(
        default=None, description="A .jsonl, .jsonl.gz or .parquet file of samples instead of the hub."
    )
    prompt_field: str = Field(default="prompt", description="Column of the prompt, for --task jsonl.")
    offset: int = Field(default=0, ge=0, le=MAX_COUNT, description="Leave out the first N samples of each task.")
    limit: Annotated[int | None, Flag(unset="all")] = Field(default=None, ge=1, le=MAX_COUNT, description=LIMIT_TEXT)
    shuffle_seed: Annotated[int | None, Flag(unset="the order of the data set")] = Field(
        default=None, ge=0, le=MAX_SEED, description="Shuffle the samples, before --offset and --limit, by this seed."
    )
    num_shots: int = Field(
        default=0, ge=0, le=MAX_SHOTS, description="Worked examples before each prompt, the first of --shots-file."
    )
    shots_file: Annotated[str | None, Flag(unset="the training split on the hub")] = Field(
        default=None, description="A data file of the task's own form for --num-shots."
    )
    system_prompt: Annotated[str | None, Flag(unset="none")] = Field(
        default=None, description="A system message before each prompt; without a chat template, text before it."
    )

    @model_validator(mode="after")
    def _shots_are_counted(self) -> Self:
        if self.shots_file is not None and self.num_shots == 0:
            raise ValueError(
                f"--shots-file {self.shots_file}: without --num-shots none of it is shown; say how many, or drop it"
            )
        return self


# Settings of data that version 0.1.0 did not have, as it read samples.
READ_BEFORE: dict[str, object] = {"shuffle_seed": None, "num_shots": 0, "shots_file": None, "system_prompt": None}


class PolicySettings(Settings):
    """How tokens are drafted. Defaults are the paper's (section 4: gamma 0.75, at most 5 drafts, 512 new tokens)."""

    policy: str = Field(
        default="paper",
        description="Where decode settings come from that are not given: paper, demo, a published name or a YAML file.",
    )
    gamma: Annotated[float | tuple[float, ...], AfterValidator(probabilities)] = Field(
        default=0.75, description="Exit threshold in [0, 1], or one per exit with commas; 1 drafts nothing."
    )
    exits: Annotated[PolicyExits | None, Flag(unset="L/4, L/2, 3L/4, or all there are heads at")] = Field(
        default=None, description="Exit layers, such as 4,8,12; [] in a file: n-grams alone draft."
    )
    stop: Stop = Field(default="token", description="Whether a gamma is of a token alone or of all pending drafts.")
    max_drafts: int = Field(default=5, ge=0, le=MAX_DRAFTS, description="Drafts pending at once.")
    head: HeadKind = Field(default="full", description=HEAD_TEXT)
    gate: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Skip tests that pass with less probability, says a gate; 0 tests always.",
    )
    reject: Annotated[float | None, Flag(unset="never")] = Field(
        default=None, ge=0.0, le=1.0, description="Confidence of a deeper head that rejects a draft early."
    )
    ngram: Annotated[float | None, Flag(unset="no n-gram drafts")] = Field(
        default=None, ge=0.0, lt=1.0, description="Threshold of n-gram drafts in [0, 1)."
    )
    ngram_store: bool = Field(default=True, description="n-grams of the store beside the heads too, if there is one.")
    max_new_tokens: int = Field(default=512, ge=1, le=MAX_COUNT, description=MAX_NEW_TOKENS_TEXT)


class DecodeSettings(RivalSettings, PolicySettings):
    """How tokens are decoded, by `adadecode` and by what it is compared with.

    `policy` names where the settings come from that are not given: `paper`, `demo` or a YAML file of settings.
    """


class MethodSettings(Settings):
    """What is measured."""

    methods: MethodNames = Field(default=DEFAULT_METHODS, description=METHODS_TEXT)


class ThreadSettings(Settings):
    """How many CPU threads one process computes with."""

    threads: Annotated[int | None, Flag(unset="cores // workers")] = Field(
        default=None, ge=1, le=MAX_THREADS, description="CPU threads per worker."
    )


class PlacementSettings(ThreadSettings):
    """Where, with how many hands and how patiently a run is done. Nothing here decides its results."""

    workers: Annotated[int | Literal["auto"], BeforeValidator(number_or_auto)] = Field(
        default=1,
        description="Ray actors, with their GPUs or an equal share of the CPUs; auto: what the cluster holds, also later.",
    )
    local: bool = Field(default=False, description="In this process, without Ray.")
    address: Address = Field(default=None, description=f"{ADDRESS_TEXT}.")
    label_selector: LabelSelector = Field(default=None, description=SELECTOR_TEXT)
    deadline_s: Annotated[float, Flag("deadline")] = Field(
        default=60.0,
        gt=0.0,
        le=MAX_SECONDS,
        description="Least seconds a shard may take before its worker counts as hung; more by measured rates.",
    )
    grace_s: Annotated[float, Flag("grace")] = Field(
        default=20.0, ge=0.0, le=MAX_SECONDS, description="Seconds for shards in flight after Ctrl-C."
    )
    max_errors: Annotated[str, BeforeValidator(number_or_share)] = Field(
        default="5%", description="Samples that may fail before the run stops: N, or P% of those planned."
    )
    retry_errors: bool = Field(default=False, description="Compute shards with failed samples again.")
    profile: Annotated[int | None, Flag(unset="no trace")] = Field(
        default=None, ge=1, le=MAX_TRACED, description="Trace N more tokens of each method on one worker, for no row."
    )

    @model_validator(mode="after")
    def _local_has_one_worker(self) -> Self:
        if self.local and (self.workers != 1 or self.address is not None or self.label_selector is not None):
            raise ValueError(
                "a local run has one worker and no cluster: drop --local, or --workers, --address and --label-selector"
            )
        return self


# What decides where and with how much a run is done, and none of its results: a resume may have other ones.
PLACEMENT = (*PlacementSettings.model_fields, "gpus_per_worker")
