"""What one sample's failure is: the error of its row, never the end of the shard; a second try when memory ran out."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from adadecode.errors import DeviceLostError, RowsDependentError, is_rust_panic
from adadecode.evaluation.rows import MAX_MESSAGE_LEN
from adadecode.model.decoder import DecoderModel
from adadecode.model.memory import broken_devices_named, is_out_of_memory

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Failure:
    """An error as a row holds it. Texts alone: the error's traceback would keep what its frames had in memory."""

    error_type: str
    error_message: str  # one line, at most MAX_MESSAGE_LEN characters
    is_out_of_memory: bool


def result_or_failure(what: str, function: Callable[[], ResultT], *models: DecoderModel) -> ResultT | Failure:
    """What `function` returns, or how it failed; when memory ran out, after one more try with all caches freed.

    `what` names it in the log; `models` are what it decodes with. Raises DeviceLostError, RowsDependentError, and what else
    is not a sample's failure, such as KeyboardInterrupt.
    """
    result = _caught(function)
    if isinstance(result, Failure) and result.is_out_of_memory:
        log.warning("%s: out of memory, trying once more: %s", what, result.error_message)
        free_memory(*models)
        result = _caught(function)
        if isinstance(result, Failure):
            free_memory(*models)  # a capture that failed has spoiled the memory its graphs share
    if isinstance(result, Failure):
        log.warning("%s failed: %s: %s", what, result.error_type, result.error_message)
    return result


def free_memory(*models: DecoderModel) -> None:
    """Frees what is kept to be used again: decode steps with their graphs, unreachable objects, the device's cache."""
    for model in models:
        model.drop_steps()
    gc.collect()
    if torch.cuda.is_initialized():
        with broken_devices_named():
            torch.cuda.empty_cache()


def _caught(function: Callable[[], ResultT]) -> ResultT | Failure:
    """What `function` returns, or how it failed; the error itself, with all its frames held, ends here."""
    try:
        with broken_devices_named():
            return function()
    except (DeviceLostError, RowsDependentError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_rust_panic(error):
            raise
        return failure_of(error)


def failure_of(error: BaseException) -> Failure:
    """`error` as a row holds it."""
    message = " ".join((str(error) or repr(error)).split())
    message = message.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored
    return Failure(type(error).__name__, message[:MAX_MESSAGE_LEN], is_out_of_memory(error))
