"""What a bench measures: a model with real or synthetic weights, heads and policies for it, and prompts."""

from dataclasses import dataclass
from typing import Any

import torch

from adadecode.bench.synthetic import synthetic_heads, synthetic_lm, synthetic_prompts
from adadecode.engine.decode import check_can_decode, decode
from adadecode.engine.draft_model import check_draft_model
from adadecode.engine.generate import Request
from adadecode.engine.policy import Policy, make_policy
from adadecode.engine.sampling import draw_of
from adadecode.engine.tally import Decoded
from adadecode.errors import UsageError
from adadecode.evaluation.heads import heads_for, medusa_by_task
from adadecode.kernels.sampling import Draw
from adadecode.methods import METHODS, NEVER_FIRES, any_needs_heads
from adadecode.model.decoder import DecoderModel
from adadecode.model.draft_model import load_draft_model
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.load import load_model
from adadecode.model.medusa_heads import MedusaHeads
from adadecode.records import Prompt, Say
from adadecode.settings import BenchConfig
from adadecode.tasks import expand_task, load_found, task_domain
from adadecode.tasks.heads import reads_heads
from adadecode.tasks.usable import usable_prompts

PROMPTS_PER_TASK = 2
SYNTHETIC_PROMPTS, SYNTHETIC_PROMPT_LEN = 3, 64


@dataclass(frozen=True)
class BenchSubject:
    """A loaded model, its heads and policies per task, the prompts that are decoded, a draft model and Medusa heads."""

    config: BenchConfig
    model: DecoderModel
    prompts: list[Prompt]
    heads: dict[str, ExitHeads]
    policies: dict[str, Policy]
    draft: DecoderModel | None
    medusa: dict[str, MedusaHeads]

    @property
    def width(self) -> int:
        """W, the rows of every decode step."""
        return make_policy(self.config.decode, None, self.model.num_layers).width

    def policy(self, task: str) -> Policy:
        """The policy on prompts of `task`."""
        return self.policies.get(task) or make_policy(self.config.decode, None, self.model.num_layers)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods asked for; where exits draft for one that owes vanilla's output, also exits that never fire."""
        asked = self.config.methods
        has_exits = any(METHODS[name].exits and METHODS[name].owes == "exact" for name in asked)
        has_exits = has_exits and any(policy.exits for policy in self.policies.values())
        return tuple(dict.fromkeys((*asked, NEVER_FIRES) if has_exits else asked))

    def width_of(self, method: str) -> int | None:
        """Rows of the decode steps of `method`; None where they are not ours."""
        return METHODS[method].step_width(self.width)

    def num_positions(self, prompt: Prompt) -> int:
        """Positions of the prompt and the longest output."""
        longest = self.model.context_len - len(prompt.token_ids)
        return len(prompt.token_ids) + min(self.config.decode.max_new_tokens, longest)

    def draw(self, prompt: Prompt) -> Draw | None:
        """How the output of `prompt` is drawn, in every repeat alike, so that these are measurements of one thing."""
        key = self.config.sampling_key(prompt.task, prompt.sample_id)
        return draw_of(self.config, key, len(prompt.token_ids))

    def decode_prompt(self, method: str, prompt: Prompt, *, model: Any = None, record_logits: bool = False) -> Decoded:
        """The generation of `method` on `prompt`; `model` stands in for the bench's own where it is to be watched."""
        longest, draw = self.config.decode.max_new_tokens, self.draw(prompt)
        request = Request(prompt.token_ids, longest, record_logits=record_logits, draw=draw)
        policy, heads, medusa = self.policy(prompt.task), self.heads.get(prompt.task), self.medusa.get(prompt.task)
        return decode(model or self.model, METHODS[method], request, policy, heads, self.draft, medusa)


def load_subject(config: BenchConfig, say: Say) -> BenchSubject:
    """Loads or makes the model, the heads and the prompts; says which prompts are left out."""
    is_synthetic = config.shape is not None
    drafts = any_needs_heads(config.methods, config.decode.exits) if is_synthetic else reads_heads(config)
    heads: dict[str, ExitHeads] = {}
    draft, medusa = None, dict[str, MedusaHeads]()
    if config.shape is not None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device 'cuda': no CUDA device is visible to this process; use --device cpu")
        lm = synthetic_lm(config.shape, dtype=getattr(torch, config.dtype), device=config.device)
        model = DecoderModel(lm, config.kernels)
        prompt_ids = synthetic_prompts(model.vocab_size, config.limit or SYNTHETIC_PROMPTS, SYNTHETIC_PROMPT_LEN)
        prompts = [Prompt("synthetic", str(idx), token_ids) for idx, token_ids in enumerate(prompt_ids)]
        if drafts:
            decode = config.decode
            heads["synthetic"] = synthetic_heads(model, decode.exits, decode.head, decode.gate)
    else:
        tasks = expand_task(config.task)
        data = config if config.limit else config.model_copy(update={"limit": PROMPTS_PER_TASK})
        found = {task: load_found(task, data) for task in tasks}
        model, tokenizer = load_model(config)
        draft, medusa = load_draft_model(config, tokenizer), medusa_by_task(config, tasks, model)
        check_draft_model(draft)
        prompts = usable_prompts(tokenizer, found, model.context_len, model.vocab_size, say)
        if drafts:
            heads = {task: heads_for(config, task_domain(task), model) for task in tasks}
    policies = {task: make_policy(config.decode, of_task.exits, model.num_layers) for task, of_task in heads.items()}
    subject = BenchSubject(config, model, prompts, heads, policies, draft, medusa)
    for task in {prompt.task for prompt in prompts}:
        methods = [METHODS[name] for name in config.methods]
        check_can_decode(model, methods, subject.policy(task), heads.get(task), draft, medusa.get(task))
    return subject
