"""Model folders changed as users have them, loaded here or in a process of its own, and the line that refuses them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adadecode.errors import UsageError
from adadecode.model.decoder import DecoderModel
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings

WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def edit(folder: Path, file: str, **changed: Any) -> None:
    """Sets keys of a JSON file; `...` takes one out."""
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    content |= changed
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def biased(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {f"model.layers.{i}.self_attn.q_proj.bias": torch.ones(32) for i in range(2)}


def load(folder: Path | str) -> DecoderModel:
    return load_model(ModelSettings(model=str(folder), dtype="float32", kernels="eager"))[0]


def refusal(folder: Path | str) -> str:
    """The reason with which the model in `folder` is refused."""
    with pytest.raises(UsageError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 500, message
    assert caught.value.exit_code == 2
    start = f"--model {str(folder)!r} cannot be loaded: "
    assert message.startswith(start), message
    return message.removeprefix(start)


def quantised(how: str) -> str:
    return f"its weights are quantised ({how}): give the full-precision checkpoint"


LOAD = """
import logging, sys
from adadecode.errors import UsageError
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings
logging.disable()
for name in sys.argv[1:]:
    try:
        print(*load_model(ModelSettings(model=name, dtype="float32", kernels="eager"))[0].notes)
    except UsageError as error:
        print(error)
print("unread:", *sys.stdin.read().split())
"""


def loaded_elsewhere(*models: Path | str, **environment: str) -> list[str]:
    """The notes on each of `models`, or why it is refused, by a process that has `y` on stdin; at last what it left."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, models)],
        input="y",
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()
