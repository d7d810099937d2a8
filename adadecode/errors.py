"""Failures explained in one line: the value, the allowed range and the remedy. `exit_code` is the process's."""

from collections.abc import Iterable

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_MISMATCH, EXIT_INCOMPLETE, EXIT_REGRESSION = range(6)
WORST_FIRST = (EXIT_MISMATCH, EXIT_REGRESSION, EXIT_INCOMPLETE, EXIT_FAILED)


def worst_code(codes: Iterable[int]) -> int:
    """The exit code of several runs together: that of the one that matters most."""
    found = set(codes)
    return next((code for code in WORST_FIRST if code in found), EXIT_OK)


class AdaDecodeError(Exception):
    """Any failure we explain in one line instead of a traceback."""

    exit_code = EXIT_FAILED


class UsageError(AdaDecodeError, ValueError):
    """A setting, file or name the user gave is not usable."""

    exit_code = EXIT_USAGE


class UnsupportedModelError(UsageError):
    """The model's layers need something the engine does not do; decoding it would be wrong."""


class NotFiniteError(UsageError):
    """A model that gives no finite logits for any prompt: its weights overflow in this dtype, or are damaged."""


class KernelsError(UsageError):
    """The kernels that were asked for cannot be had on this machine, device or dtype.

    `reason` is why, without the remedy: other kernels are one where the user named these, not where a run has them.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


class ExitHeadsError(UsageError):
    """Exit heads that are damaged, or were made for another model or other exit layers."""


class TaskDataError(UsageError):
    """A data set that is missing, empty or malformed."""


class PromptError(TaskDataError):
    """One prompt that cannot be used, or whose row cannot: the others may be."""


class RunFolderError(UsageError):
    """An output folder that belongs to another run or cannot be written."""


class DamagedError(RunFolderError):
    """A commit, or the file it names, that is not what was committed: a rerun computes the shard again."""


class LeaseError(UsageError):
    """A run folder in which another driver is at work."""


class TraceError(UsageError):
    """A trace that is damaged, or was recorded from another model, tokenizer or heads."""


class ResourcesError(UsageError):
    """More workers were asked for than the cluster can hold."""


class ClusterLostError(AdaDecodeError):
    """The Ray cluster of a run is gone: its head, or the last node that it can have."""


class PromptTooLongError(PromptError):
    """One sample's prompt leaves no room in the model's context: an error row, not the end of the run."""

    @classmethod
    def of(cls, prompt_len: int, context_len: int) -> "PromptTooLongError":
        """The error of a prompt of `prompt_len` tokens, too many or none, in a context of `context_len`."""
        return cls(
            f"the prompt has {prompt_len} tokens; the model's context of {context_len} needs 1 to {context_len - 1} so "
            "that a token can follow: shorten the prompt"
        )


class UnknownTokenError(PromptError):
    """One sample's prompt has a token that its model lacks: an error row, not the end of the run."""

    @classmethod
    def of(cls, lowest: int, highest: int, vocab_size: int) -> "UnknownTokenError":
        """The error of a prompt of token ids `lowest` to `highest` for a model that knows `vocab_size` tokens."""
        return cls(
            f"the prompt has token ids {lowest} to {highest}, the model knows 0 to {vocab_size - 1}: its tokenizer has "
            "more tokens than the model; leave them out of the prompt"
        )


class NonFiniteLogitsError(AdaDecodeError, ArithmeticError):
    """One sample's logits hold NaN or infinity, so no argmax is meaningful: an error row."""


class StoppedError(AdaDecodeError):
    """A run that was asked to stop before it had begun."""

    exit_code = EXIT_INCOMPLETE


class TooManyErrorsError(AdaDecodeError):
    """More samples of a run failed than --max-errors allows: something is wrong with all of it."""


class DeviceLostError(AdaDecodeError):
    """The device's context is broken: every later sample of this process would fail too."""


class RowsDependentError(AdaDecodeError):
    """On this machine a row's bits depend on its slot or on the other rows, so parity cannot be promised."""


def is_rust_panic(error: BaseException) -> bool:
    """Whether a tokenizer's Rust code panicked: no Exception, and of a class of its own in every extension."""
    return (type(error).__module__, type(error).__name__) == ("pyo3_runtime", "PanicException")
