"""Memory that ran out, of a device or of this machine: how it is known and the one line it becomes; devices that broke."""

import contextlib
from collections.abc import Generator

import torch

from adadecode.errors import AdaDecodeError, DeviceLostError
from adadecode.printable import on_one_line

# Of RuntimeErrors, torch.AcceleratorErrors among them: on the host, outside of torch's allocator, in NVIDIA's libraries.
WORDS = ("can't allocate memory", "std::bad_alloc", "out of memory", "_STATUS_ALLOC_FAILED")
SMALLER = "try a smaller --dtype such as bfloat16, fewer --max-drafts, shorter prompts or fewer --max-new-tokens"
SMALLER_MODEL = (
    "try a smaller --dtype such as bfloat16, more --gpus-per-worker, --device cpu, or end what else is on this device"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device's memory or this machine's ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


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


@contextlib.contextmanager
def broken_devices_named() -> Generator[None]:
    """Raises DeviceLostError for an error of the device; memory that ran out is none."""
    try:
        yield
    except torch.AcceleratorError as error:
        if is_out_of_memory(error):
            raise
        raise DeviceLostError(f"the device failed and needs a new process: {error}") from error
