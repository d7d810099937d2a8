"""Speed of every method on one machine, and where the time goes: rounds, their parts, and what is between them.

All methods decode the same prompts in turns, in one process. Prefill is excluded throughout.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from adadecode.bench.parts import Call
from adadecode.bench.synthetic import synthetic_heads, synthetic_lm, synthetic_prompts
from adadecode.engine import decode as engine
from adadecode.engine.generate import Request
from adadecode.engine.policy import Policy, make_policy, step_width
from adadecode.engine.tally import Decoded
from adadecode.errors import UsageError
from adadecode.evaluation.worker import heads_for
from adadecode.kernels.weights import Gate, Head
from adadecode.methods import METHODS, any_needs_heads
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.load import load_model
from adadecode.settings import BenchConfig
from adadecode.tasks import expand_task, load_examples, task_domain
from adadecode.tasks.encode import encode_prompt

Variant = str

PROMPTS_PER_TASK = 2
SYNTHETIC_PROMPTS, SYNTHETIC_PROMPT_LEN = 3, 64


class Prompt(NamedTuple):
    task: str
    token_ids: list[int]


@dataclass(frozen=True)
class Bench:
    """What is measured: a loaded model, its heads and policies per task, and prompts."""

    config: BenchConfig
    model: DecoderModel
    prompts: list[Prompt]
    heads: dict[str, ExitHeads]
    policies: dict[str, Policy]
    width: int

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The methods, and beside `adadecode` the same policy with exits that never fire."""
        never: tuple[Variant, ...] = ("adadecode-never",) if "adadecode" in self.config.methods else ()
        return (*self.config.methods, *never)

    def width_of(self, variant: Variant) -> int | None:
        return METHODS[variant].step_width(self.width)

    def num_positions(self, prompt: Prompt) -> int:
        """Positions of the prompt and the longest output."""
        longest = self.model.context_len - len(prompt.token_ids)
        return len(prompt.token_ids) + min(self.config.decode.max_new_tokens, longest)

    def decode(self, variant: Variant, prompt: Prompt, *, model: Any = None, record_logits: bool = False) -> Decoded:
        """One generation; `model` stands in for the bench's own where it is to be watched."""
        request = Request(prompt.token_ids, self.config.decode.max_new_tokens, record_logits=record_logits)
        policy = self.policies.get(prompt.task) or make_policy(self.config.decode, None, self.model.num_layers)
        return engine.decode(model or self.model, METHODS[variant], request, policy, self.heads.get(prompt.task))


@dataclass
class Traces:
    """What one traced generation of every prompt called, per variant, and how it compares with vanilla's."""

    calls: dict[Variant, Counter[Call]]
    tests: dict[Call, Head | Gate]
    outputs: dict[Variant, list[tuple[int, ...]]]
    parity: dict[Variant, list[dict[str, Any]]]


def load_bench(config: BenchConfig) -> Bench:
    """Loads or makes the model, the heads and the prompts."""
    drafts = any_needs_heads(config.methods)
    heads: dict[str, ExitHeads] = {}
    if config.shape is not None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device 'cuda': no CUDA device is visible to this process; use --device cpu")
        lm = synthetic_lm(config.shape, dtype=getattr(torch, config.dtype), device=config.device)
        model = DecoderModel(lm, config.kernels)
        prompt_ids = synthetic_prompts(model.vocab_size, config.limit or SYNTHETIC_PROMPTS, SYNTHETIC_PROMPT_LEN)
        prompts = [Prompt("synthetic", token_ids) for token_ids in prompt_ids]
        if drafts:
            decode = config.decode
            heads["synthetic"] = synthetic_heads(model, decode.exits, decode.head, decode.gate)
    else:
        tasks = expand_task(config.task)
        data = config if config.limit else config.model_copy(update={"limit": PROMPTS_PER_TASK})
        examples = {task: load_examples(task, data) for task in tasks}
        model, tokenizer = load_model(config)
        prompts = [
            Prompt(task, encode_prompt(tokenizer, example)) for task, found in examples.items() for example in found
        ]
        if drafts:
            heads = {task: heads_for(config, task_domain(task), model) for task in tasks}
    policies = {task: make_policy(config.decode, of_task.exits, model.num_layers) for task, of_task in heads.items()}
    return Bench(config, model, prompts, heads, policies, step_width(config.decode.max_drafts))
