"""Memory that ran out, of a device or of this machine: how it is known, and the one line it becomes."""

import contextlib
from collections.abc import Generator

import torch

from adadecode.errors import AdaDecodeError
from adadecode.printable import on_one_line

HOST_MEMORY_WORDS = ("can't allocate memory", "std::bad_alloc")  # of RuntimeErrors that torch makes of it
SMALLER = "try a smaller --dtype such as bfloat16, fewer --max-drafts, shorter prompts or fewer --max-new-tokens"
SMALLER_MODEL = "try a smaller --dtype such as bfloat16, --device cpu, or end what else is on this device"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device's memory or this machine's ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in HOST_MEMORY_WORDS)


@contextlib.contextmanager
def out_of_memory_named(remedy: str = SMALLER) -> Generator[None]:
    """Raises AdaDecodeError with one line that ends in `remedy` where memory ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error) or repr(error)).partition("\n")[0]
        raise AdaDecodeError(f"out of memory ({on_one_line(said, 120)}); {remedy}") from error
