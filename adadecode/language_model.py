"""A loaded model that continues prompts, for programs: `adadecode.load`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from adadecode.errors import UsageError
from adadecode.methods import METHODS, OURS
from adadecode.settings import GenerateConfig, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from adadecode.engine.generate import Request
    from adadecode.engine.policy import Policy
    from adadecode.model.decoder import DecoderModel
    from adadecode.model.exit_heads import ExitHeads
    from adadecode.model.medusa_heads import MedusaHeads
    from adadecode.records import Generation, Message, Piece


@dataclass(frozen=True)
class Output:
    """One continuation: its text without what ended it, and what it took."""

    text: str
    generation: Generation

    @property
    def layers_per_token(self) -> float | None:
        """Batched layer executions per token after the first; None below two tokens."""
        return self.generation.layers_per_token


class Stream:
    """An output while its tokens are verified: its pieces of text, one after the other, and in the end the whole of it.

    `output` is None until then, and for one that was stopped; `num_tokens` counts those that were verified. A model decodes
    one request at a time: the next one closes a stream that was begun and not read to its end.
    """

    def __init__(self, lm: LanguageModel, request: Request, method: str) -> None:
        """Decodes as its pieces are asked for."""
        self.output: Output | None = None
        self.num_tokens, self._is_stopped, self._is_closed = 0, False, False
        self._pieces = self._decode(lm, request, method)

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        """The next piece of text. Raises UsageError for a stream that was closed, and what `generate` raises."""
        if self._is_closed:
            raise UsageError("stream: closed before its end; read it all before the next request to its model")
        return next(self._pieces)

    def stop(self) -> None:
        """Has it end after the tokens that are verified."""
        self._is_stopped = True

    def close(self) -> None:
        """Ends it where it stands, as the next request to its model does: it cannot be read on."""
        self._is_closed = True
        self._pieces.close()

    def _decode(self, lm: LanguageModel, request: Request, method: str) -> Generator[Piece]:
        from adadecode.engine.decode import decode_rounds
        from adadecode.model.memory import out_of_memory_named
        from adadecode.tasks.encode import decode_output
        from adadecode.tasks.increments import TextIncrements

        tokenizer, stops = lm.tokenizer, lm.config.stop_strings or ()
        decode: Callable[[list[int]], str] = tokenizer.decode  # pyright: ignore[reportAssignmentType]  # of one output
        text = TextIncrements(decode, stops, request.eos(lm.model))
        lm.close_stream()
        lm.open_streams.append(self)
        rounds = decode_rounds(lm.model, METHODS[method], request, lm.policy, lm.heads, lm.draft, lm.medusa)
        try:
            while not self._is_stopped:
                try:
                    with out_of_memory_named():
                        kept = next(rounds)
                except StopIteration as end:
                    self.output = Output(decode_output(tokenizer, end.value.generation, stops), end.value.generation)
                    break
                self.num_tokens += len(kept.token_ids)
                yield from text.add(kept.token_ids, kept.depths)
        finally:
            rounds.close()
            if self in lm.open_streams:
                lm.open_streams.remove(self)
        yield from text.end()


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
    open_streams: list[Stream] = field(default_factory=list[Stream])  # the one that decodes, if any: steps share memory

    def generate(
        self, prompt: str, *, method: str = OURS, max_new_tokens: int | None = None, repeat: int = 0
    ) -> Output:
        """The continuation of `prompt` by `method`, of at most `max_new_tokens` (the settings' when None).

        With a temperature in the settings it is drawn, for each prompt and `repeat` anew and by all methods alike; else
        greedy.

        It ends before the first of the settings' stop strings, if any. Raises UsageError for a method that is not there or
        that lacks heads, also as PromptError for a prompt that cannot be used, NonFiniteLogitsError, RowsDependentError
        where rows are not independent in a step as long as this takes, and AdaDecodeError when memory runs out.
        """
        from adadecode.engine.decode import decode
        from adadecode.model.memory import out_of_memory_named
        from adadecode.tasks.encode import decode_output

        request = self._request(prompt, (), method, max_new_tokens, repeat, 0)
        with out_of_memory_named():
            decoded = decode(self.model, METHODS[method], request, self.policy, self.heads, self.draft, self.medusa)
        return Output(
            decode_output(self.tokenizer, decoded.generation, self.config.stop_strings or ()), decoded.generation
        )

    def stream(
        self,
        prompt: str,
        *,
        context: Sequence[Message] = (),
        method: str = OURS,
        max_new_tokens: int | None = None,
        repeat: int = 0,
        turn: int = 0,
    ) -> Stream:
        """What `generate` gives, as pieces of text that come as their tokens are verified.

        `context` are the messages of a conversation before `prompt`, for a model with a chat template; with a temperature
        each `turn` draws anew. Raises what `generate` raises, at once or while it is read.
        """
        return Stream(self, self._request(prompt, context, method, max_new_tokens, repeat, turn), method)

    def fitting(self, prompt: str, context: Sequence[Message]) -> list[Message]:
        """`context` without the oldest messages, two at a time, that leave no room in the model's context for an output.

        Room is for the settings' longest output or a quarter of the context, whichever is less. Raises PromptError.
        """
        from adadecode.records import Example
        from adadecode.tasks.encode import encode_usable

        room = min(self.config.decode.max_new_tokens, self.model.context_len // 4)
        kept = list(context)
        while kept:
            example = Example("prompt", prompt, prompt, context=tuple(kept))
            if len(encode_usable(self.tokenizer, example)) + room <= self.model.context_len:
                break
            del kept[:2]
        return kept

    @property
    def exits(self) -> tuple[int, ...]:
        """Where AdaDecode drafts with the settings' policy; 0 stands for n-grams, before the first layer."""
        return self.policy.for_method(METHODS[OURS]).draft_exits

    @property
    def notes(self) -> list[str]:
        """What a person should know of how it decodes, a line each."""
        from adadecode.model.foreign import foreign_facts
        from adadecode.report.foreign import foreign_text

        heads, medusa = ({"": of} if of is not None else {} for of in (self.heads, self.medusa))
        foreign = foreign_text(foreign_facts(heads, medusa) | {"model_hash": self.model.model_hash})
        return self.model.chosen_kernels.lines() + ([] if foreign is None else [foreign])

    def close_stream(self) -> None:
        """Closes the stream that was begun and not read to its end, if any: another request takes its memory."""
        while self.open_streams:
            self.open_streams.pop().close()

    def _request(
        self,
        prompt: str,
        context: Sequence[Message],
        method: str,
        max_new_tokens: int | None,
        repeat: int,
        turn: int,
    ) -> Request:
        """What is asked of the engine, once it is known that it can be done."""
        from adadecode.engine.decode import check_can_decode
        from adadecode.engine.generate import Request, room_for_output
        from adadecode.engine.invariance import check_rows_once
        from adadecode.engine.sampling import draw_of
        from adadecode.engine.stop_strings import StopStrings
        from adadecode.files import short_hash
        from adadecode.model.memory import out_of_memory_named
        from adadecode.records import Example
        from adadecode.tasks.encode import usable_ids
        from adadecode.tasks.heads import heads_missing

        if method not in METHODS:
            raise UsageError(f"method {method!r}: unknown; choose among {', '.join(METHODS)}")
        if METHODS[method].needs_heads(self.config.decode.exits) and self.heads is None:
            raise heads_missing(self.config)
        check_can_decode(self.model, (METHODS[method],), self.policy, self.heads, self.draft, self.medusa)
        if context and self.tokenizer.chat_template is None:
            raise UsageError("context: the model's tokenizer has no chat template to write a conversation with")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UsageError(f"max_new_tokens {max_new_tokens}: give at least 1")
        self.close_stream()
        limit = self.config.decode.max_new_tokens if max_new_tokens is None else max_new_tokens
        prompt_ids = usable_ids(
            self.tokenizer,
            Example("prompt", prompt, prompt, context=tuple(context)),
            self.model.context_len,
            self.model.vocab_size,
        )
        stops = self.config.stop_strings or ()
        prompt_hash = short_hash(
            " ".join(map(str, prompt_ids))
        )  # each prompt meets noise of its own, whatever the method
        key = self.config.sampling_key("generate", prompt_hash, repeat, turn)
        draw = draw_of(self.config, key, len(prompt_ids))
        request = Request(prompt_ids, limit, stops=StopStrings.of(stops, self.tokenizer), draw=draw)
        num_positions = len(prompt_ids) + min(limit, room_for_output(self.model, len(prompt_ids)))
        with out_of_memory_named():
            check_rows_once(self.model, self.policy.width, num_positions, self.checked)
        return request


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
