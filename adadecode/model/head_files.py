"""Exit heads on disk: `exit_heads.safetensors` with their tensors, `exit_heads.json` with what they were made for.

The tensors are those of the kind for each exit layer e, by the names of PART_NAMES - `T.<e>`, `U.<e>` and `V.<e>`, `W.<e>`
or nothing -, `block.<weight>.<e>` where a head has a layer of its own, and, when the heads were reduced, `shortlist.ids`,
`shortlist.<e>`, `gate.<e>` and `temperature.<e>`. Beside them may lie an n-gram store (`ngram_store.py`).
"""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from adadecode.errors import ExitHeadsError
from adadecode.files import short_hash, write_whole
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.files import shown
from adadecode.model.foreign import check_made_for, check_sizes
from adadecode.model.head_tensors import OVER_SHORTLIST, HeadTensors
from adadecode.model.ngram_store import load_store
from adadecode.settings import HeadKind, TrainedKind

TENSORS, FACTS = "exit_heads.safetensors", "exit_heads.json"
FORMAT_VERSION = 1


class HeadFacts(BaseModel):
    """What a set of heads was made for and how; `training` holds settings and measured agreement."""

    model_config = ConfigDict(frozen=True)

    format_version: int = FORMAT_VERSION
    kind: TrainedKind = "transform"
    base_model: str
    base_model_hash: str
    exits: tuple[int, ...]
    width: int
    vocab_size: int | None = None  # not told by version 0.1.0
    dtype: str
    training: dict[str, Any]
    block_exits: tuple[int, ...] = ()  # of heads of another kind, where some have blocks

    def exits_of(self, head: HeadKind) -> tuple[int, ...]:
        """The exits that can be tested as `head` says."""
        return tuple(e for e in self.exits if head == "shortlist" or e not in self.block_exits)


def save_heads(folder: Path, tensors: HeadTensors, facts: HeadFacts) -> None:
    """Writes `tensors` and `facts` to `folder`, made if missing; the facts last, as the sign of completeness."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)
    write_whole(folder / TENSORS, save(tensors.named(getattr(torch, facts.dtype))))
    write_whole(folder / FACTS, json.dumps(facts.model_dump(mode="json"), indent=2) + "\n")


def read_facts(folder: Path, name: str = FACTS) -> HeadFacts | None:
    """The facts of the complete heads in `folder`, in the file `name`; None when there are none that can be read."""
    try:
        return HeadFacts.model_validate_json((folder / name).read_bytes())
    except (OSError, ValidationError):
        return None


def load_heads(
    folder: Path, model: DecoderModel, head: HeadKind = "full", gate: float = 0.0, *, allows_foreign: bool = False
) -> ExitHeads:
    """The exit heads in `folder`, tested in full or over their shortlist, after a gate when `gate` is above 0, and store.

    Raises ExitHeadsError when they are unreadable, damaged, made for another model, or lack what `head` and `gate` need.
    Where `allows_foreign` those made for other weights of the same sizes will do, and say so (`made_for`).
    """
    retrain = "train heads for this model with `adadecode train-heads`"
    try:
        if not (folder / FACTS).is_file() or not (folder / TENSORS).is_file():
            raise ExitHeadsError(f"--heads {str(folder)!r}: no {FACTS} with {TENSORS} there; {retrain}")
        facts = HeadFacts.model_validate_json((folder / FACTS).read_bytes())
        raw = (folder / TENSORS).read_bytes()
        named = load(raw)
    except OSError as error:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: cannot be read ({error.strerror}); check its name and permissions, or {retrain}"
        ) from error
    except (SafetensorError, ValidationError, RuntimeError, LookupError) as error:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: the files are damaged; {retrain} ({type(error).__name__})"
        ) from error
    if facts.format_version != FORMAT_VERSION:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: their format_version is {shown(facts.format_version)}, this program knows "
            f"{FORMAT_VERSION}: update it, or {retrain}"
        )
    flag = f"--heads {str(folder)!r}"
    foreign = check_made_for(
        flag, facts.base_model_hash, model, retrain, allows_foreign=allows_foreign, whose=facts.base_model
    )
    if foreign is not None:
        told = (
            model.vocab_size if facts.kind == "full" else facts.vocab_size
        )  # that the tensors of full heads fit is checked
        check_sizes(flag, facts.width, told, model, retrain)
    try:
        tensors = HeadTensors.from_named(named, facts.exits, facts.kind)
    except KeyError as error:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: tensors {shown(sorted(named))} do not match exits {shown(facts.exits)} of kind "
            f"{facts.kind}; {retrain}"
        ) from error
    lacking = {
        "--head full": (head == "full" and facts.kind in OVER_SHORTLIST, "--head shortlist"),
        "--head shortlist": (head == "shortlist" and tensors.shortlist is None, "--head full"),
        f"--gate {gate:g}": (gate > 0.0 and not tensors.gates, "--gate 0"),
    }
    for flag, (is_lacking, remedy) in lacking.items():
        if is_lacking:
            raise ExitHeadsError(f"{flag}: the heads in {str(folder)!r} were made without; use {remedy}, or {retrain}")
    heads = tensors.on(model, head, gate, short_hash(raw)).made_for_weights(foreign)
    store = load_store(folder, model, allows_foreign=allows_foreign)
    return heads if store is None else heads.with_store(store).made_for_weights(foreign or store.made_for)
