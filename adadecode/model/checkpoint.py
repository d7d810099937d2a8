"""The tensors of a checkpoint against those of the model its configuration describes."""

import os
import re
from collections.abc import Collection, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from adadecode.model.config_file import quantised_reason
from adadecode.model.files import damage, read_object, reason, shown
from adadecode.printable import on_one_line

WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
FULL_PRECISION = {"F64", "F32", "F16", "BF16", torch.float64, torch.float32, torch.float16, torch.bfloat16}

# How the tensors that quantised checkpoints have in place of weights end, and what made them.
PACKED = {
    ".qweight": "gptq or awq",
    ".weight_packed": "compressed-tensors",
    ".q_weight": "exl2",
    ".trellis": "exl3",
    ".SCB": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".weight_scale": "8-bit floats",
    ".weight_scale_inv": "8-bit floats",
    "_blocks": "mxfp4",
}
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")

Shape = tuple[int, ...]


class Held(NamedTuple):
    """A tensor in a file: its shape, and its type as the format has it."""

    shape: Shape
    dtype: Any


def check_folder(folder: Path, expected: Mapping[str, Shape] | None, num_layers: int) -> None:
    """Raises ValueError with the reason when the checkpoint in `folder` is not one of the `expected` weights.

    Where these are not known, None, it may have any that are not quantised and of no more than `num_layers`.

    Nothing but names, shapes and types is read of its safetensors files, which are all it may have: pickles may hold code.
    """
    held: dict[str, Held] = {}
    for file in checkpoint_files(folder):
        held |= read_held(file)
    for why in _refusals(held, expected, num_layers):
        raise ValueError(why)


def _refusals(held: Mapping[str, Held], expected: Mapping[str, Shape] | None, num_layers: int) -> Iterator[str]:
    packed = next((how for name in held for end, how in PACKED.items() if name.endswith(end)), None)
    if packed is not None:
        yield quantised_reason(packed)
    weights = expected if expected is not None else [name for name in held if name.endswith(".weight")]
    odd = next((name for name in weights if name in held and held[name].dtype not in FULL_PRECISION), None)
    if odd is not None:
        yield quantised_reason(f"{odd} is {held[odd].dtype}")
    yield from layers_too_many(held, num_layers)
    if expected is None:
        return
    yield from wrong_shapes((name, held[name].shape, shape) for name, shape in expected.items() if name in held)
    yield from lacking(name for name in expected if not {name, name.removeprefix("model.")} & held.keys())


def layers_too_many(names: Collection[str], num_layers: int) -> Iterator[str]:
    """Why tensors `names` are refused when some are of layers that a model of `num_layers` does not have."""
    last = max((int(found[1]) for name in names if (found := LAYER.search(name))), default=-1)
    if last >= num_layers:
        yield f"the checkpoint has {last + 1} layers, config.json's num_hidden_layers is {num_layers}: set it right"


def wrong_shapes(tensors: Iterator[tuple[str, Shape, Shape]]) -> Iterator[str]:
    """Why a checkpoint is refused with `tensors`: name, its shape there, and the shape in the model."""
    different = [(name, list(there), list(here)) for name, there, here in tensors if tuple(there) != tuple(here)]
    if different:
        name, there, here = different[0]
        others = f"; {len(different) - 1} more differ" if len(different) > 1 else ""
        yield f"{name} is {there} in the checkpoint and {here} by config.json{others}: they are of different models"


def lacking(names: Iterator[str]) -> Iterator[str]:
    """Why a checkpoint is refused that lacks the weights `names`, which transformers would make up."""
    if missing := sorted(names):
        yield f"the checkpoint lacks {few(missing)}"


def few(names: Collection[str]) -> str:
    """`names`, or the first of them and how many more there are."""
    first = ", ".join(on_one_line(name, 80) for name in list(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files with the weights in `folder`; raises ValueError without."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (index := folder / (WEIGHTS + INDEX_SUFFIX)).is_file():
        return _indexed_files(index)
    refused_as_pickled({path.name for path in folder.iterdir()})
    raise ValueError(f"it has no {WEIGHTS} and no index of such files: download them")


def refused_as_pickled(names: Container[str]) -> None:
    """Raises ValueError where the weights among files of these `names` are pickled."""
    for name in (PICKLED, PICKLED + INDEX_SUFFIX):
        if name in names:
            raise ValueError(
                f"its weights are pickled ({name}), and a pickle may hold code: give a version of it with {WEIGHTS}, or "
                "convert it where you trust it (transformers' `save_pretrained`)"
            )


def _indexed_files(index: Path) -> list[Path]:
    content = read_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(content.get("metadata"), dict):
        raise ValueError(f"{index.name} lacks its `weight_map` or `metadata`: download it again")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index.name} names {shown(name)}, which is no file beside it")
    named = list(dict.fromkeys(weight_map.values()))
    missing = [name for name in named if not os.path.isfile(index.parent / name)]  # noqa: PTH113  # any text may be given
    if missing:
        raise ValueError(f"{index.name} names {few(missing)}, missing here: download what is missing")
    return [index.parent / name for name in named]


def read_held(file: Path) -> dict[str, Held]:
    """Names, shapes and types of the tensors in `file`; raises ValueError with the reason when they cannot be read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  # no mapping
            return {name: Held(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError, RuntimeError, EOFError, LookupError, TypeError) as error:
        raise ValueError(f"{file.name} {damage(file, f'is damaged or cut ({reason(error)})')}") from error
