"""The values that cross a boundary between rooms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Say = Callable[[str], None]  # takes a line of progress


@dataclass(frozen=True)
class Message:
    """One message of a conversation, as a chat template takes it."""

    role: str
    content: str


class Piece(NamedTuple):
    """A part of an output's text, and the depth of the token that completed it: an exit layer, or L for the full model."""

    text: str
    depth: int


@dataclass(frozen=True)
class Example:
    """One sample of a task.

    `prompt` is the plain text a base model continues, empty where the sample is a conversation and has none;
    `chat_prompt` the user message put through the tokenizer's chat template when it has one, after the messages of
    `context`. `reference` is what scoring compares with, None when the task has no answers. `later_turns` are what the
    user says after the first answer, after the second and so on; `category` is its kind within the task.
    """

    sample_id: str
    prompt: str
    chat_prompt: str
    reference: str | None = None
    context: tuple[Message, ...] = ()
    later_turns: tuple[str, ...] = ()
    category: str | None = None

    @property
    def num_turns(self) -> int:
        return 1 + len(self.later_turns)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation that a chat template is given."""
        return (*self.context, Message("user", self.chat_prompt))


@dataclass(frozen=True)
class Prompt:
    """The prompt of one sample of `task`, in a model's tokens."""

    task: str
    sample_id: str
    token_ids: list[int]


@dataclass(frozen=True)
class Shard:
    """Samples evaluated and committed together; `shard_idx` counts from 0 within a run."""

    shard_idx: int
    task: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class ShardOutcome:
    """What the rows of one shard come to.

    `num_error_samples` have an error row; tokens and seconds are sums over all methods. The methods under the parity
    contract owe one row per ok row of vanilla; `num_exact` of them are exact.
    """

    num_samples: int
    num_error_samples: int
    num_output_tokens: int
    busy_s: float
    num_exact: int
    num_owed: int


class Rejected(NamedTuple):
    """A draft that was not accepted: the round it was made in, from 0, and where in the output it would have stood.

    `exit` is the exit layer that proposed it. Beside drafts that were wrong, early or at the end of the round, there are
    those after a wrong one, and right ones past the place at which the output ended.
    """

    round_idx: int
    position: int
    token_id: int
    exit: int


@dataclass(frozen=True)
class Generation:
    """What one generation, greedy or drawn, gave and cost.

    The first token comes from the prefill; rounds, drafts and layers count the tokens after it. Times are seconds.
    `decode_s` is e2e minus TTFT; `step_gaps_s` holds one gap per round. `draft_depths` has one entry per output token:
    the exit layer it was drafted at, or L when the full model gave it. `layers_run` counts batched layer executions: a
    segment of 4 layers run once for 3 rows counts 4. `rejected` are the drafts that were not accepted, round after round;
    None where nobody saw which they were.
    """

    output_token_ids: tuple[int, ...]
    finish_reason: str
    ttft_s: float
    e2e_s: float
    step_gaps_s: tuple[float, ...]
    num_rounds: int
    layers_run: int
    exits: tuple[int, ...]
    drafted_per_exit: tuple[int, ...]
    accepted_per_exit: tuple[int, ...]
    draft_depths: tuple[int, ...]
    rejected: tuple[Rejected, ...] | None = None

    @property
    def num_drafted(self) -> int:
        return sum(self.drafted_per_exit)

    @property
    def num_accepted(self) -> int:
        return sum(self.accepted_per_exit)

    @property
    def decode_s(self) -> float:
        return self.e2e_s - self.ttft_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None below two tokens."""
        num_later = len(self.output_token_ids) - 1
        return self.decode_s / num_later if num_later else None

    @property
    def layers_per_token(self) -> float | None:
        """Batched layer executions per token after the first; L for vanilla; None below two tokens."""
        num_later = len(self.output_token_ids) - 1
        return self.layers_run / num_later if num_later else None


@dataclass(frozen=True)
class ChosenKernels:
    """The kernels that compute, never `auto`, and why that came to slower ones than there can be; None where it did not."""

    kernels: str
    because: str | None = None

    def lines(self) -> list[str]:
        """A line for a person where something is slower than it could be; none otherwise."""
        return [] if self.because is None else [f"kernels: {self.kernels}, because {self.because}"]


@dataclass(frozen=True)
class WorkerState:
    """What one worker does and has done for `for_s` seconds; `doing` names its shard while it is working."""

    name: str
    node: str
    phase: Literal["starting", "loading", "idle", "working"]
    doing: str
    for_s: float
