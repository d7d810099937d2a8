"""A loaded model that continues prompts, for programs: `adadecode.load`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adadecode.errors import UsageError
from adadecode.methods import METHODS, OURS
from adadecode.settings import GenerateConfig, settings_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adadecode.engine.policy import Policy
    from adadecode.model.decoder import DecoderModel
    from adadecode.model.exit_heads import ExitHeads
    from adadecode.model.medusa_heads import MedusaHeads
    from adadecode.records import Generation


@dataclass(frozen=True)
class Output:
    """One continuation: its text without what ended it, and what it took."""

    text: str
    generation: Generation

    @property
    def layers_per_token(self) -> float | None:
        """Batched layer executions per token after the first; None below two tokens."""
        return self.generation.layers_per_token


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model with its exit heads and policy, ready to continue prompts; `heads` is None where it has none.

    `draft` is the draft model and `medusa` the Medusa heads, None where the settings name none.
    """

    config: GenerateConfig
    model: DecoderModel
    tokenizer: PreTrainedTokenizerBase
    heads: ExitHeads | None
    policy: Policy
    draft: DecoderModel | None = None
    medusa: MedusaHeads | None = None
    checked: set[int] = field(default_factory=set[int])  # S of the steps in which rows were found to be independent

    def generate(
        self, prompt: str, *, method: str = OURS, max_new_tokens: int | None = None, repeat: int = 0
    ) -> Output:
        """The continuation of `prompt` by `method`, of at most `max_new_tokens` (the settings' when None).

        With a temperature in the settings it is drawn, for each `repeat` anew and by every method alike; else greedy.

        It ends before the first of the settings' stop strings, if any. Raises UsageError for a method that is not there or
        that lacks heads, also as PromptError for a prompt that cannot be used, NonFiniteLogitsError, RowsDependentError
        where rows are not independent in a step as long as this takes, and AdaDecodeError when memory runs out.
        """
        from adadecode.engine.decode import check_can_decode, decode
        from adadecode.engine.generate import Request, room_for_output
        from adadecode.engine.invariance import check_rows_once
        from adadecode.engine.sampling import draw_of
        from adadecode.engine.stop_strings import StopStrings
        from adadecode.model.memory import out_of_memory_named
        from adadecode.records import Example
        from adadecode.tasks.encode import decode_output, usable_ids
        from adadecode.tasks.heads import heads_missing

        if method not in METHODS:
            raise UsageError(f"method {method!r}: unknown; choose among {', '.join(METHODS)}")
        if METHODS[method].needs_heads(self.config.decode.exits) and self.heads is None:
            raise heads_missing(self.config)
        check_can_decode(self.model, (METHODS[method],), self.policy, self.heads, self.draft, self.medusa)
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UsageError(f"max_new_tokens {max_new_tokens}: give at least 1")
        limit = self.config.decode.max_new_tokens if max_new_tokens is None else max_new_tokens
        prompt_ids = usable_ids(
            self.tokenizer, Example("prompt", prompt, prompt), self.model.context_len, self.model.vocab_size
        )
        stops = self.config.stop_strings or ()
        draw = draw_of(self.config, self.config.sampling_key("generate", "prompt", repeat), len(prompt_ids))
        request = Request(prompt_ids, limit, stops=StopStrings.of(stops, self.tokenizer), draw=draw)
        num_positions = len(prompt_ids) + min(limit, room_for_output(self.model, len(prompt_ids)))
        with out_of_memory_named():
            check_rows_once(self.model, self.policy.width, num_positions, self.checked)
            decoded = decode(self.model, METHODS[method], request, self.policy, self.heads, self.draft, self.medusa)
        return Output(decode_output(self.tokenizer, decoded.generation, stops), decoded.generation)


def load(model: str = "demo", heads: str | None = None, **settings: Any) -> LanguageModel:
    """The model `model` (`demo`, a folder or a hub id) with the exit heads in `heads`, as `adadecode generate` has it.

    `settings` are those of `GenerateConfig`, flat as the flags are: `dtype`, `device`, `threads`, `gamma`, `max_drafts` and
    so on. Without heads only methods that need none generate. Rows are checked to be independent at the policy's width.
    Raises UsageError (a setting, file, model or heads cannot be used) and RowsDependentError.
    """
    return load_configured(settings_of(GenerateConfig, {"model": model, "heads": heads, **settings}))


def load_configured(config: GenerateConfig) -> LanguageModel:
    """What `load` gives for settings that are resolved."""
    from adadecode.engine.draft_model import check_draft_model
    from adadecode.engine.invariance import NUM_POSITIONS, check_rows_once
    from adadecode.engine.policy import make_policy
    from adadecode.evaluation.heads import heads_for, medusa_for
    from adadecode.model.draft_model import load_draft_model
    from adadecode.model.load import load_model, use_threads
    from adadecode.model.memory import out_of_memory_named
    from adadecode.tasks.heads import has_heads

    use_threads(config.threads)
    model, tokenizer = load_model(config)
    with out_of_memory_named():
        heads = heads_for(config, config.domain, model) if has_heads(config) else None
        policy = make_policy(config.decode, None if heads is None else heads.exits, model.num_layers)
        draft, medusa = load_draft_model(config, tokenizer), medusa_for(config, config.domain, model)
        lm = LanguageModel(config, model, tokenizer, heads, policy, draft, medusa)
        check_draft_model(draft)
        for num_positions in NUM_POSITIONS:
            check_rows_once(model, policy.width, num_positions, lm.checked)
    return lm
