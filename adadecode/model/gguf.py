"""A model in one GGUF file, as llama.cpp has them: judged by its header before transformers unpacks it.

The format: docs/gguf.md of the ggml project.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adadecode.model.files import damage, reason, shown

PACKAGES = "gguf and accelerate: pip install 'adadecode[gguf]'"
FAMILIES_THERE = {"llama", "qwen2", "qwen3"}  # Mistral's files say llama; others are not tried
JOIN = "join its parts with llama.cpp's `llama-gguf-split --merge`"


def check_gguf(path: Path) -> None:
    """Raises ValueError with the reason when the model in the GGUF file at `path` is none that can be unpacked and decoded.

    Only the header is read. Needs the package `gguf`.
    """
    try:
        import accelerate  # noqa: F401  # pyright: ignore[reportUnusedImport]  # transformers unpacks with it
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f"a GGUF file is read with the packages {PACKAGES}") from error
    try:
        header = GGUFReader(path)
        reasons = list(_refusals(header))
    except Exception as error:  # the reader checks nothing: any byte may be what it stumbles over
        raise ValueError(f"it {damage(path, f'is no GGUF file that can be read ({reason(error)})')}") from error
    for why in reasons:
        raise ValueError(why)


def _refusals(header: Any) -> Iterator[str]:
    """Why a model with this header is refused, most telling first."""
    num_parts = _value(header, "split.count")
    if num_parts is not None and num_parts > 1:
        yield f"it is one of {num_parts} parts of a split file: {JOIN}"
    kind = _value(header, "general.architecture")
    if kind not in FAMILIES_THERE:
        known = ", ".join(sorted(FAMILIES_THERE))
        yield f"its architecture {shown(kind)} is none that the engine decodes from a GGUF file ({known})"
    scaling = _value(header, f"{kind}.rope.scaling.type")
    if scaling not in (None, "none") or any(tensor.name == "rope_freqs.weight" for tensor in header.tensors):
        yield "its rotary embeddings are scaled, which is lost in unpacking: give the folder with the original weights"
    if not _value(header, "tokenizer.ggml.model"):
        yield "it has no tokenizer; give a file that has one"


def _value(header: Any, key: str) -> Any:
    field = header.get_field(key)
    return None if field is None else field.contents()
