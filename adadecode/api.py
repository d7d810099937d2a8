"""What the command line does, as functions. Nothing here prints: what happens meanwhile an observer is told."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadecode.errors import AdaDecodeError, StoppedError, TooManyErrorsError, UsageError
from adadecode.evaluation.observer import QUIET, Counting, Limiting, Observer, Together
from adadecode.evaluation.stop import NEVER, StopRequest
from adadecode.methods import METHODS, OURS
from adadecode.settings import (
    BenchConfig,
    CertifyConfig,
    EvalConfig,
    GenerateConfig,
    TrainConfig,
    TuneConfig,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

    from adadecode.bench.result import BenchResult, BenchRow
    from adadecode.certify.result import CertifyResult
    from adadecode.engine.policy import Policy
    from adadecode.evaluation.progress import RunProgress
    from adadecode.evaluation.recompute import Recomputed
    from adadecode.model.decoder import DecoderModel
    from adadecode.model.exit_heads import ExitHeads
    from adadecode.model.head_files import HeadFacts
    from adadecode.records import Generation, Say
    from adadecode.runs.result import RunResult
    from adadecode.runs.run import PreparedRun
    from adadecode.runs.scores import RunScores
    from adadecode.scoring.sandbox import Sandbox
    from adadecode.tuning.result import TuneResult


def silent(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Output:
    """One continuation: its text without the end-of-sequence token, and what it took."""

    text: str
    generation: Generation

    @property
    def layers_per_token(self) -> float | None:
        """Batched layer executions per token after the first; None below two tokens."""
        return self.generation.layers_per_token


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model with its exit heads and policy, ready to continue prompts; `heads` is None where it has none.

    `draft` is the draft model, None where the settings name none.
    """

    config: GenerateConfig
    model: DecoderModel
    tokenizer: PreTrainedTokenizerBase
    heads: ExitHeads | None
    policy: Policy
    draft: DecoderModel | None = None
    checked: set[int] = field(default_factory=set[int])  # S of the steps in which rows were found to be independent

    def generate(self, prompt: str, *, method: str = OURS, max_new_tokens: int | None = None) -> Output:
        """The greedy continuation of `prompt` by `method`, of at most `max_new_tokens` (the settings' when None).

        Raises UsageError for a method that is not there or that lacks heads, also as PromptError for a prompt that cannot
        be used, NonFiniteLogitsError, RowsDependentError where rows are not independent in a step as long as this takes,
        and AdaDecodeError when memory runs out.
        """
        from adadecode.engine.decode import check_can_decode, decode
        from adadecode.engine.generate import Request, room_for_output
        from adadecode.engine.invariance import check_rows_once
        from adadecode.model.memory import out_of_memory_named
        from adadecode.records import Example
        from adadecode.tasks.encode import decode_output, usable_ids
        from adadecode.tasks.heads import heads_missing

        if method not in METHODS:
            raise UsageError(f"method {method!r}: unknown; choose among {', '.join(METHODS)}")
        if METHODS[method].needs_heads and self.heads is None:
            raise heads_missing(self.config)
        check_can_decode(self.model, (METHODS[method],), self.policy, self.heads, self.draft)
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UsageError(f"max_new_tokens {max_new_tokens}: give at least 1")
        limit = self.config.decode.max_new_tokens if max_new_tokens is None else max_new_tokens
        prompt_ids = usable_ids(
            self.tokenizer, Example("prompt", prompt, prompt), self.model.context_len, self.model.vocab_size
        )
        request = Request(prompt_ids, limit)
        num_positions = len(prompt_ids) + min(limit, room_for_output(self.model, len(prompt_ids)))
        with out_of_memory_named():
            check_rows_once(self.model, self.policy.width, num_positions, self.checked)
            decoded = decode(self.model, METHODS[method], request, self.policy, self.heads, self.draft)
        return Output(decode_output(self.tokenizer, decoded.generation), decoded.generation)


def load(model: str = "demo", heads: str | None = None, **settings: Any) -> LanguageModel:
    """The model `model` (`demo`, a folder or a hub id) with the exit heads in `heads`, as `adadecode generate` has it.

    `settings` are those of `GenerateConfig`, flat as the flags are: `dtype`, `device`, `threads`, `gamma`, `max_drafts` and
    so on. Without heads only methods that need none generate. Rows are checked to be independent at the policy's width.
    Raises UsageError (a setting, file, model or heads cannot be used) and RowsDependentError.
    """
    return load_configured(settings_of(GenerateConfig, {"model": model, "heads": heads, **settings}))


def load_configured(config: GenerateConfig) -> LanguageModel:
    """What `load` gives for settings that are resolved."""
    from adadecode.engine.invariance import NUM_POSITIONS, check_rows_once
    from adadecode.engine.policy import make_policy
    from adadecode.evaluation.worker import heads_for
    from adadecode.model.draft_model import load_draft_model
    from adadecode.model.load import load_model, use_threads
    from adadecode.model.memory import out_of_memory_named
    from adadecode.tasks.heads import has_heads

    use_threads(config.threads)
    model, tokenizer = load_model(config)
    with out_of_memory_named():
        heads = heads_for(config, config.domain, model) if has_heads(config) else None
        policy = make_policy(config.decode, None if heads is None else heads.exits, model.num_layers)
        lm = LanguageModel(config, model, tokenizer, heads, policy, load_draft_model(config, tokenizer))
        for num_positions in NUM_POSITIONS:
            check_rows_once(model, policy.width, num_positions, lm.checked)
    return lm


def evaluate(
    settings: EvalConfig,
    out: str | Path | None = None,
    *,
    observer: Observer = QUIET,
    stop: StopRequest = NEVER,
    command: str | None = None,
) -> RunResult:
    """Runs or finishes the evaluation of `settings` in the folder or URL `out`, on Ray or in this process.

    `out` is `results/<task>-<fingerprint>` when None. `stop`, a StopRequest that was entered, heeds Ctrl-C and SIGTERM:
    what is in flight is finished then. Whether it was stopped, failed or is done, the run's tables are written from what
    is committed; any other exception leaves that to the next call, which goes on from there. `command` is what run.json
    stores of how this start was typed, None where a program calls. Returns the closed run.
    Raises StoppedError when it was stopped before it began, UsageError, TooManyErrorsError and other AdaDecodeErrors.
    """
    stop.install()
    try:
        return _evaluate(settings, out, observer, stop, command)
    except KeyboardInterrupt as error:
        if not stop.is_made:
            raise
        raise StoppedError("stopped before the first shard") from error


def _evaluate(
    settings: EvalConfig, out: str | Path | None, observer: Observer, stop: StopRequest, command: str | None
) -> RunResult:
    from adadecode.evaluation.progress import ErrorLimit, RunProgress, total_outcome
    from adadecode.runs.run import close_run, open_run

    with open_run(settings, out, command) as prepared:
        for line in (*prepared.notes, prepared.heading()):
            observer.say(line)
        progress = RunProgress(prepared.plan.num_rows, total_outcome(prepared.committed.values()))
        limit = ErrorLimit.of(settings.max_errors, progress.num_planned)
        watch = Together(Counting(progress), observer, Limiting(progress, limit))
        try:
            limit.check(progress.num_errors)
            watch.on_start(progress)
            try:
                _execute(prepared, progress, watch, stop)
            finally:
                watch.on_end()
        except KeyboardInterrupt:
            if not stop.is_made:
                raise
        except AdaDecodeError as error:
            stop.end()
            reasons: list[str] = []
            with contextlib.suppress(AdaDecodeError):  # the first error is the one to tell
                result = close_run(prepared)
                reasons = result.errors
                observer.on_closed(result)
            if isinstance(error, TooManyErrorsError):
                raise TooManyErrorsError("; ".join([str(error), *reasons])) from error
            raise
        stop.end()
        result = close_run(prepared)
        observer.on_closed(result)
        return result


def _execute(prepared: PreparedRun, progress: RunProgress, observer: Observer, stop: StopRequest) -> None:
    if not prepared.todo or stop.is_made:
        return
    if prepared.config.local:
        from adadecode.evaluation.local import run_local

        run_local(prepared, observer, stop)
        return
    from ray_jobs.cluster import connect
    from ray_jobs.evaluation import run_on_ray
    from ray_jobs.metrics import Metered

    connect(prepared.config.address)
    stop.install()  # Ray has set handlers of its own
    run_on_ray(prepared, Together(observer, Metered(progress, prepared.folder.run_id)), stop)


def certify(
    settings: CertifyConfig,
    out: str | Path | None = None,
    *,
    keys: Mapping[str, str] | None = None,
    say: Say = silent,
    stop: StopRequest = NEVER,
) -> CertifyResult:
    """Compares two servers on the same prompts, or finishes that, in the folder or URL `out`; returns what it comes to.

    `keys` has the API key of `baseline` and of `candidate`, where one is needed: it is stored nowhere. `say` gets lines of
    progress. Raises UsageError where a server cannot be asked, and other AdaDecodeErrors.
    """
    from adadecode.certify.run import certify

    stop.install()
    return certify(settings, out, keys or {}, say, stop)


def score(run: str | Path, sandbox: Sandbox | None = None) -> RunScores:
    """Scores the outputs of the run at the folder or URL `run` and writes its scores.parquet; decodes nothing.

    What a model wrote is run only in a `sandbox` that is given: None runs nothing. Raises RunFolderError where there is
    no run with rows, and UsageError where nothing in it can be scored, or the system refuses the sandbox.
    """
    from adadecode.runs.scores import score_run

    if sandbox is not None:
        sandbox.check()
    return score_run(run, None if sandbox is None else sandbox.run)


def recompute(run: str | Path, num_rows: int, seed: int = 0, *, say: Say = silent) -> Recomputed:
    """Decodes `num_rows` rows of the run at the folder or URL `run` again, drawn by `seed`, and compares ids and digests.

    Its model is loaded and writes nothing. `say` gets lines of progress. Raises UsageError where the model or the heads
    are others than those of the run, and RunFolderError where there is no run with rows.
    """
    from adadecode.evaluation.recompute import recompute

    return recompute(run, num_rows, seed, say)


def train_heads(settings: TrainConfig, out: str | Path, *, say: Say = silent) -> HeadFacts:
    """Trains exit heads into the folder `out`, or goes on where a training was interrupted; returns their facts.

    With `settings.workers` on Ray, else in this process. `say` gets lines of progress. Raises UsageError and other
    AdaDecodeErrors.
    """
    if settings.workers is None:
        from adadecode.training.train import train_from_config

        return train_from_config(settings, Path(out), say)
    from ray_jobs.cluster import connect
    from ray_jobs.training import train_on_ray

    connect(settings.address)
    return train_on_ray(settings, Path(out), say)


def tune(settings: TuneConfig, out: str | Path, *, say: Say = silent) -> TuneResult:
    """Finds the fastest policy on this machine and writes it to `out`/policy.yaml; returns what was measured of it.

    `say` gets lines of progress. Raises UsageError and other AdaDecodeErrors.
    """
    from adadecode.tuning.tune import tune_from_config

    return tune_from_config(settings, Path(out), say)


def run_bench(settings: BenchConfig, *, say: Say = silent) -> tuple[BenchResult, list[BenchRow]]:
    """Measures the speed of every method and of the parts of a round; returns what was found and a row per generation.

    `say` gets lines of progress. Raises UsageError and RowsDependentError.
    """
    from adadecode.bench.bench import run_bench

    return run_bench(settings, say)
