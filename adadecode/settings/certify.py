"""Settings of a certification: which two servers are compared, on which prompts, how often and how patiently."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from adadecode.settings.fields import Flag
from adadecode.settings.groups import (
    ADDRESS_TEXT,
    MAX_COUNT,
    MAX_NEW_TOKENS_TEXT,
    MAX_SECONDS,
    MAX_WORKERS,
    Address,
    DataSettings,
    number_or_share,
)

ApiName = Literal["completions", "chat"]
ServerName = Literal["auto", "llama.cpp", "vllm", "sglang", "other"]
MAX_PASSES = 100
MAX_CONCURRENCY = 1024
MAX_RETRIES = 100

# Where and how patiently it is done: nothing of it decides what the servers are asked.
PATIENCE = ("timeout_s", "deadline_s", "retries", "max_errors", "grace_s", "workers", "address")


class CertifyConfig(DataSettings):
    """One comparison of two OpenAI-compatible servers. Its URLs may hold a password: store none of them as it is."""

    baseline: str = Field(description="URL of the server that is trusted: the same model without speculation.")
    candidate: str = Field(description="URL of the server that is to be exact.")
    baseline_model: Annotated[str | None, Flag(unset="the only one it serves")] = Field(
        default=None, description="The model to ask the baseline for."
    )
    candidate_model: Annotated[str | None, Flag(unset="the only one it serves")] = Field(
        default=None, description="The model to ask the candidate for."
    )
    server: ServerName = Field(
        default="auto",
        description="How both are asked for token ids: as llama.cpp, vllm or sglang is; other: text alone; auto: each is "
        "asked what it is.",
    )
    api: ApiName = Field(
        default="completions",
        description="What prompts go to: completions, the task's plain prompt to /v1/completions; chat, its messages to "
        "/v1/chat/completions.",
    )
    passes: int = Field(
        default=3, ge=2, le=MAX_PASSES, description="How often each prompt is asked of each server, at least twice."
    )
    concurrency: int = Field(
        default=1,
        ge=1,
        le=MAX_CONCURRENCY,
        description="Prompts in flight at once, of all workers together; 1 measures one request at a time.",
    )
    workers: Annotated[int | None, Flag(unset="threads of this process, without Ray")] = Field(
        default=None,
        ge=1,
        le=MAX_WORKERS,
        description="Ray actors that ask, without a GPU, a share of --concurrency each.",
    )
    address: Address = Field(default=None, description=f"{ADDRESS_TEXT}, with --workers.")
    max_new_tokens: int = Field(default=256, ge=1, le=MAX_COUNT, description=MAX_NEW_TOKENS_TEXT)
    timeout_s: Annotated[float, Flag("timeout")] = Field(
        default=60.0, gt=0.0, le=MAX_SECONDS, description="Seconds a server may be silent before a request has failed."
    )
    deadline_s: Annotated[float, Flag("deadline")] = Field(
        default=600.0, gt=0.0, le=MAX_SECONDS, description="Seconds one output may take in all."
    )
    retries: int = Field(
        default=3, ge=0, le=MAX_RETRIES, description="Tries after the first of a request that another try may mend."
    )
    max_errors: Annotated[str, BeforeValidator(number_or_share)] = Field(
        default="5%", description="Prompts that may fail before the run stops: N, or P% of those planned."
    )
    grace_s: Annotated[float, Flag("grace")] = Field(
        default=20.0, ge=0.0, le=MAX_SECONDS, description="Seconds for prompts in flight after Ctrl-C."
    )

    @model_validator(mode="after")
    def _workers_share_the_requests(self) -> Self:
        if self.workers is None and self.address is not None:
            raise ValueError(f"--address {self.address}: without --workers no cluster is used; give both or neither")
        if self.workers is not None and self.concurrency % self.workers:
            more = -(-self.concurrency // self.workers) * self.workers
            raise ValueError(
                f"--workers {self.workers}: --concurrency {self.concurrency} cannot be shared among them equally; give a "
                f"multiple of {self.workers}, such as --concurrency {more}"
            )
        return self
