"""One frozen configuration per use: an evaluation, a training, a search, a measurement of speed."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from adadecode.files import short_hash
from adadecode.methods import METHODS
from adadecode.settings.fields import Flag, is_mapping
from adadecode.settings.groups import (
    ADDRESS_TEXT,
    HEAD_TEXT,
    LIMIT_TEXT,
    MAX_COUNT,
    MAX_NEW_TOKENS_TEXT,
    MAX_REPEATS,
    MAX_SEED,
    MAX_WARMUP,
    MAX_WORKERS,
    PLACEMENT,
    READ_BEFORE,
    Address,
    DataSettings,
    DecodeSettings,
    Domain,
    Exits,
    HeadKind,
    MethodSettings,
    ModelSettings,
    PlacementSettings,
    ThreadSettings,
)
from adadecode.settings.heads import NEVER_FOREIGN, ORIGINAL_HEADS, HeadsSettings
from adadecode.settings.policy import DECODED_BEFORE, with_policy
from adadecode.settings.rivals import MAX_DRAFTS, check_read, nothing_drafts
from adadecode.settings.sampling import DRAWN_BEFORE, SamplingSettings
from adadecode.settings.selector import SELECTOR_TEXT, LabelSelector
from adadecode.settings.stops import STOPPED_BEFORE, StopSettings

# Settings of a run that version 0.1.0 did not have, as its runs were.
BEFORE: dict[str, object] = {
    **READ_BEFORE,
    **STOPPED_BEFORE,
    **NEVER_FOREIGN,
    **DRAWN_BEFORE,
    "gpus_per_worker": 1,
}
TrainedKind = Literal["transform", "low-rank", "full", "shortlist", "block", "original", "medusa"]
Loss = Literal["kl", "argmax", "acceptance"]
MAX_STORE_MB = 1000.0
ShapeName = Literal["llama-3.1-8b", "llama-3.2-1b", "qwen3-8b", "llama-160m"]


class DecodingSettings(HeadsSettings, ModelSettings):
    """A model that decodes. What `decode` does not give comes from its policy, the demo model's own or the paper's.

    A `decode` that is all there, as in the run.json of a run of any version, is taken as it stands; see `with_policy`.
    """

    decode: DecodeSettings = DecodeSettings()

    @model_validator(mode="before")
    @classmethod
    def _policy_comes_first(cls, values: Any) -> Any:
        return with_policy(values) if is_mapping(values) else values

    @model_validator(mode="after")
    def _original_heads_are_full(self) -> Self:
        if self.heads == ORIGINAL_HEADS and (self.decode.head != "full" or self.decode.gate > 0.0):
            raise ValueError(
                f"--heads original is the model's own LM head, so --head must be full and --gate 0, not "
                f"{self.decode.head} and {self.decode.gate:g}: give them, or --policy paper"
            )
        return self

    @property
    def other_heads(self) -> str | None:
        return self.decode.medusa_heads


def check_methods(methods: tuple[str, ...], decode: DecodeSettings) -> None:
    """Raises ValueError where `decode` lacks what one of `methods` drafts with, or sets what none of them reads."""
    check_read(methods, decode)
    if decode.exits == () and decode.ngram is None:
        drafting = (METHODS[name] for name in methods)
        silent = next((method.name for method in drafting if method.exits and method.drafts), None)
        if silent is not None:
            raise ValueError(nothing_drafts(silent))


class GenerateConfig(ThreadSettings, StopSettings, SamplingSettings, DecodingSettings):
    """One model that continues prompts, as `adadecode.load` and `adadecode generate` take it."""

    domain: Domain = Field(default="math", description="Which of the demo's heads.")


class EvalConfig(PlacementSettings, MethodSettings, StopSettings, SamplingSettings, DataSettings, DecodingSettings):
    """One evaluation run. The resolved form is stored in run.json; `fingerprint` ties a run folder to it."""

    repeats: int = Field(default=1, ge=1, le=MAX_REPEATS, description="Runs of each sample and method, drawn anew.")
    warmup: int = Field(
        default=1, ge=0, le=MAX_WARMUP, description="Generations per method and worker that are not recorded."
    )
    shard_size: Annotated[
        int | None, Flag(unset="4; above 8,000 samples 1/2000 of them, at most 64; that of the run if --out holds one")
    ] = Field(default=None, ge=1, le=MAX_COUNT, description="Samples committed together.")
    check_logits: bool = Field(default=True, description="Compare logits too, bit by bit.")
    task_stops: bool = Field(default=False, description="The task's own stop strings too, which end its plain prompts.")

    @model_validator(mode="after")
    def _a_method_reads_what_is_given(self) -> Self:
        check_methods(self.methods, self.decode)
        return self

    def fingerprint(self, **facts: str | None) -> str:
        """Hash of all that decides the results: these settings less placement, and `facts` such as file hashes."""
        return fingerprint_of(self.model_dump(mode="json"), facts)


def fingerprint_of(settings: Mapping[str, Any], facts: Mapping[str, str | None]) -> str:
    """The fingerprint of an evaluation with these `settings`, as run.json of any version holds them, and `facts`.

    A setting of placement that is no longer there must stay left out, or runs that had it would look altered; a setting of
    data or decoding that came later is left out where it is as all runs were before.
    """
    decisive = {
        name: value for name, value in settings.items() if name not in PLACEMENT and (name, value) not in BEFORE.items()
    }
    if is_mapping(decode := decisive.get("decode")):
        later = DECODED_BEFORE.items()
        decisive["decode"] = {name: value for name, value in decode.items() if (name, value) not in later}
    return short_hash(json.dumps({**decisive, **facts}, sort_keys=True, separators=(",", ":")))


def in_full(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` of a run.json of any version with those that came later, as all runs were before."""
    full = {**BEFORE, **settings}
    if is_mapping(decode := full.get("decode")):
        full["decode"] = {**DECODED_BEFORE, **decode}
    return full


class TrainConfig(ThreadSettings, DataSettings, ModelSettings):
    """One training of exit heads."""

    # no default: heads trained on the prompts they are judged by would look better than they are
    task: str = Field(description="A data set of `adadecode tasks`, other prompts than those the heads are judged by.")
    limit: Annotated[int | None, Flag(unset="all")] = Field(default=None, ge=2, le=MAX_COUNT, description=LIMIT_TEXT)
    kind: TrainedKind = Field(default="transform", description="What a head is; transform is the paper's.")
    rank: Annotated[int | None, Flag(unset="32")] = Field(
        default=None, ge=1, le=MAX_COUNT, description="Rank of low-rank heads."
    )
    exits: Annotated[Exits | None, Flag(unset="L/4, L/2, 3L/4")] = Field(
        default=None, description="Exit layers, any number, such as 4,8,12."
    )
    ahead: Annotated[int | None, Flag(unset="4")] = Field(
        default=None,
        ge=1,
        le=MAX_DRAFTS,
        description="Tokens after the next that heads of --kind medusa tell, one each.",
    )
    max_new_tokens: int = Field(default=256, ge=1, le=MAX_COUNT, description="Longest output to learn from, in tokens.")
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Order of the batches and choice of held-out prompts.")
    epochs: int = Field(default=8, ge=1, le=MAX_REPEATS, description="Passes over the outputs.")
    batch_tokens: int = Field(default=1024, ge=1, le=MAX_COUNT, description="Tokens per training step.")
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0, description="Largest learning rate, after the warm-up.")
    held_out: float = Field(default=0.1, gt=0.0, lt=1.0, description="Share of the prompts kept for the report.")
    loss: Loss = Field(
        default="kl",
        description="What heads learn: the last layer's distribution, its most likely token, or to be accepted.",
    )
    kl_top_k: Annotated[int | None, Flag(unset="the whole vocabulary")] = Field(
        default=None, ge=1, le=MAX_COUNT, description="KL over this many tokens and the rest, to save memory."
    )
    shortlist_len: Annotated[int | None, Flag(unset="V / 4, at most 32768")] = Field(
        default=None, ge=1, le=MAX_COUNT, description="Tokens of the cheap heads."
    )
    store_mb: float = Field(
        default=2.0, ge=0.0, le=MAX_STORE_MB, description="Most megabytes of n-grams beside the heads; 0 for none."
    )
    outputs: Annotated[str | None, Flag(unset="--out")] = Field(
        default=None, description="Folder of other heads whose outputs to learn from."
    )
    part_prompts: int = Field(
        default=512,
        ge=1,
        le=MAX_COUNT,
        description="Prompts whose outputs are one file, the unit of work and of resuming.",
    )
    batch_prompts: int = Field(
        default=64, ge=1, le=MAX_COUNT, description="Prompts continued at once, where native kernels do not decode."
    )
    workers: Annotated[int | None, Flag(unset="in this process, without Ray")] = Field(
        default=None, ge=1, le=MAX_WORKERS, description="Ray actors that generate."
    )
    address: Address = Field(default=None, description=f"{ADDRESS_TEXT}, with --workers.")
    label_selector: LabelSelector = Field(default=None, description=SELECTOR_TEXT)

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        if self.kernels in ("graphs", "compile"):
            raise ValueError(
                f"--kernels {self.kernels}: outputs are made by native kernels or by transformers; use auto or eager"
            )
        if self.rank is not None and self.kind != "low-rank":
            raise ValueError(f"--rank {self.rank}: only heads of --kind low-rank have one, not {self.kind}; drop it")
        if self.exits is not None and self.kind == "medusa":
            raise ValueError("--exits: heads of --kind medusa read the last layer; drop it, or give --ahead")
        if self.ahead is not None and self.kind != "medusa":
            raise ValueError(f"--ahead {self.ahead}: only heads of --kind medusa look ahead, not {self.kind}; drop it")
        if self.kind == "medusa" and self.store_mb > 0.0 and "store_mb" in self.model_fields_set:
            raise ValueError(
                f"--store-mb {self.store_mb:g}: heads of --kind medusa have no n-grams beside them; drop it"
            )
        if self.kl_top_k is not None and self.kind in ("shortlist", "block", "original", "medusa"):
            raise ValueError(f"--kl-top-k {self.kl_top_k}: --kind {self.kind} trains on no such KL; drop it")
        taught = {"epochs", "learning_rate", *(["loss"] if self.loss != "kl" else [])}
        unused = taught & self.model_fields_set if self.kind == "original" else set[str]()
        if unused:
            raise ValueError(f"--kind original trains nothing: drop {flags_of(unused)}")
        for flag, value in (("--address", self.address), ("--label-selector", self.label_selector)):
            if value is not None and self.workers is None:
                raise ValueError(f"{flag} {value}: without --workers no cluster is used; give both or neither")
        return self


class TuneConfig(ThreadSettings, SamplingSettings, DataSettings, HeadsSettings, ModelSettings):
    """One search for the best policy of a model on a machine."""

    limit: int | None = Field(default=96, ge=8, le=MAX_COUNT, description=LIMIT_TEXT)
    exits: Annotated[Exits | None, Flag(unset="all that have heads")] = Field(
        default=None, description="Candidate exits, such as 4,8,12."
    )
    head: Annotated[HeadKind | None, Flag(unset="shortlist if there is one")] = Field(
        default=None, description=HEAD_TEXT
    )
    max_drafts: int = Field(default=5, ge=1, le=7, description="Most drafts that are considered.")
    max_new_tokens: int = Field(default=256, ge=2, le=MAX_COUNT, description=MAX_NEW_TOKENS_TEXT)
    held_out: float = Field(default=0.25, gt=0.0, lt=1.0, description="Share of the prompts the search does not see.")
    folds: int = Field(default=5, ge=2, le=MAX_REPEATS, description="Folds of the cross-validation.")
    repeats: int = Field(
        default=3, ge=1, le=MAX_REPEATS, description="Measurements of each held-out prompt and policy."
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Choice of held-out prompts and folds.")


class BenchDecodeSettings(DecodeSettings):
    """Decode settings of a measurement of speed, whose outputs are shorter by default."""

    max_new_tokens: int = Field(default=128, ge=1, le=MAX_COUNT, description=MAX_NEW_TOKENS_TEXT)


class BenchConfig(ThreadSettings, MethodSettings, SamplingSettings, DataSettings, DecodingSettings):
    """One measurement of speed, with the weights of `model` or synthetic ones of the size `shape`."""

    shape: Annotated[ShapeName | None, Flag(unset="the weights of --model")] = Field(
        default=None, description="Synthetic weights of a published size."
    )
    limit: Annotated[int | None, Flag(unset="2 of each task, or 3 synthetic prompts")] = Field(
        default=None, ge=1, le=MAX_REPEATS, description=LIMIT_TEXT
    )
    decode: BenchDecodeSettings = BenchDecodeSettings()  # pyright: ignore[reportIncompatibleVariableOverride]  # frozen
    repeats: int = Field(
        default=5, ge=1, le=MAX_REPEATS, description="Measurements of each method, after one to warm up."
    )

    @model_validator(mode="after")
    def _a_method_reads_what_is_given(self) -> Self:
        check_methods(self.methods, self.decode)
        return self

    @model_validator(mode="after")
    def _shape_stands_alone(self) -> Self:
        of_data = DataSettings.model_fields.keys() - {"limit"}
        beside = {"model", "revision", "heads", "foreign_heads", *of_data} & self.model_fields_set
        if self.shape is not None and self.gpus_per_worker > 1:
            raise ValueError(
                f"--gpus-per-worker {self.gpus_per_worker}: --shape {self.shape} is made on one device; drop one of the two"
            )
        if self.shape is not None and beside:
            raise ValueError(
                f"--shape {self.shape} has synthetic weights, heads and prompts: drop it, or {flags_of(beside)}"
            )
        knowing = {"--draft-model": self.decode.draft_model, "--medusa-heads": self.decode.medusa_heads}
        given = next((flag for flag, value in knowing.items() if value is not None), None)
        if self.shape is not None and given is not None:
            raise ValueError(f"--shape {self.shape} has synthetic weights, which no {given} knows: drop one of the two")
        return self

    @property
    def name(self) -> str:
        return self.shape or self.model


def flags_of(names: set[str]) -> str:
    """The flags of the settings `names`, with commas."""
    return ", ".join(sorted("--" + name.replace("_", "-") for name in names))
