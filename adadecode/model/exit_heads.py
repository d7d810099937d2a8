"""Exit heads: one trained d x d matrix T(e) per exit layer in front of the model's own frozen norm and LM head.

`logits = E* . T(e) . norm(h)` (paper section 3). On disk: `exit_heads.safetensors` with one tensor `T.<exit layer>` each
and `exit_heads.json` with what they were made for. Shapes: W rows, d model width, V vocabulary.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from adadecode.errors import ExitHeadsError
from adadecode.model.decoder import DecoderModel

TENSORS, FACTS = "exit_heads.safetensors", "exit_heads.json"


class HeadFacts(BaseModel):
    """What a set of heads was made for and how; `training` holds settings and measured agreement."""

    model_config = ConfigDict(frozen=True)

    format_version: int = 1
    base_model: str
    base_model_hash: str
    exits: tuple[int, ...]
    width: int
    dtype: str
    training: dict[str, Any]


class ExitHeads:
    """The exit heads of one model; proposes a token with its top-1 probability at an exit layer."""

    def __init__(self, model: DecoderModel, transforms: dict[int, Tensor], content_hash: str | None = None) -> None:
        """Takes T(e) `[d, d]` per exit layer, in increasing order; raises ExitHeadsError when they do not fit `model`."""
        self.exits = tuple(transforms)
        check_exits(self.exits, model.num_layers)
        for exit_layer, transform in transforms.items():
            if transform.shape != (model.width, model.width):
                raise ExitHeadsError(
                    f"exit head {exit_layer} has shape {list(transform.shape)}, the model needs "
                    f"[{model.width}, {model.width}]: train heads for this model"
                )
        self._model = model
        self._transforms = {e: t.to(device=model.device, dtype=model.dtype) for e, t in transforms.items()}
        self.content_hash = content_hash

    def logits(self, exit_layer: int, hidden: Tensor) -> Tensor:
        """Logits `[W, V]` of hidden states `[W, d]` at `exit_layer`."""
        transformed = self._model.final_norm(hidden) @ self._transforms[exit_layer].T
        return self._model.lm.lm_head(transformed)

    def propose(self, exit_layer: int, hidden: Tensor, row: int, position: int) -> tuple[int, float]:
        """The most likely next token of `row` in `hidden` `[W, d]` and its probability; `position` is not needed here.

        The head runs over all W rows, so that what it proposes does not depend on the row's slot.
        """
        logits = self.logits(exit_layer, hidden)[row].float()
        top, argmax = logits.max(dim=-1)
        confidence = (top - logits.logsumexp(dim=-1)).exp()
        token_id, probability = torch.stack([argmax.double(), confidence.double()]).tolist()
        return int(token_id), probability


def check_exits(exits: tuple[int, ...], num_layers: int) -> None:
    """Raises ExitHeadsError unless `exits` increase within 1..L-1."""
    if not exits or list(exits) != sorted(set(exits)) or exits[0] < 1 or exits[-1] >= num_layers:
        raise ExitHeadsError(
            f"exit layers {list(exits)} must increase and lie in 1..{num_layers - 1} for a model of {num_layers} layers"
        )


def paper_exits(num_layers: int) -> tuple[int, ...]:
    """Exit layers at L/4, L/2 and 3L/4 (paper section 4), without duplicates on very shallow models."""
    return tuple(sorted({max(1, num_layers * quarter // 4) for quarter in (1, 2, 3)} & set(range(1, num_layers))))


def save_heads(folder: Path, transforms: dict[int, Tensor], facts: HeadFacts) -> None:
    """Writes T(e) per exit layer and `facts` to `folder`, made if missing; the facts last, as the sign of completeness."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)
    dtype = getattr(torch, facts.dtype)
    save_file({f"T.{e}": t.to("cpu", dtype).contiguous() for e, t in transforms.items()}, folder / TENSORS)
    (folder / FACTS).write_text(json.dumps(facts.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def read_facts(folder: Path) -> HeadFacts | None:
    """The facts of the complete heads in `folder`; None when there are none that can be read."""
    try:
        return HeadFacts.model_validate_json((folder / FACTS).read_bytes())
    except (OSError, ValidationError):
        return None


def load_heads(folder: Path, model: DecoderModel) -> ExitHeads:
    """The exit heads in `folder`; raises ExitHeadsError when they are missing, damaged or made for another model."""
    retrain = "train heads for this model with `adadecode train-heads`"
    if not (folder / FACTS).is_file() or not (folder / TENSORS).is_file():
        raise ExitHeadsError(f"--heads {str(folder)!r}: no {FACTS} with {TENSORS} there; {retrain}")
    try:
        facts = HeadFacts.model_validate_json((folder / FACTS).read_bytes())
        raw = (folder / TENSORS).read_bytes()
        tensors = load(raw)
    except (SafetensorError, ValidationError) as error:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: the files are damaged; {retrain} ({type(error).__name__})"
        ) from error
    if facts.base_model_hash != model.model_hash:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: made for {facts.base_model!r} with weights {facts.base_model_hash}, "
            f"this model's are {model.model_hash}; {retrain}"
        )
    if set(tensors) != {f"T.{e}" for e in facts.exits}:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: tensors {sorted(tensors)} do not match exits {list(facts.exits)}"
        )
    transforms = {e: tensors[f"T.{e}"] for e in facts.exits}
    return ExitHeads(model, transforms, hashlib.sha256(raw).hexdigest()[:16])
