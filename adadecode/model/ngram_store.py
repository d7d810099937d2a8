"""The n-gram store: how a model's own training outputs mostly went on after their n-grams, saved beside exit heads.

The contexts are a tree. Node 0 is the empty context and says nothing; the node below another is its context with one token
more in front, so the longest known context is found from the newest token backwards. N is the number of nodes but node 0.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from adadecode.errors import ExitHeadsError
from adadecode.files import from_json, short_hash, write_whole
from adadecode.model.decoder import DecoderModel
from adadecode.model.files import shown
from adadecode.model.foreign import check_made_for

STORE = "ngram_store.safetensors"
FACTS = "facts"  # the name they have in the metadata
FORMAT_VERSION = 1
NODE_BYTES = 14  # on disk
TOKEN_BITS = 32  # of a child's key: its parent above them, its token in them
REMEDY = f"delete {STORE} to draft without, or make it again with `adadecode train-heads`"


@dataclass(frozen=True)
class StoreNodes:
    """Nodes 1..N of the tree, each after its parent.

    `parents` `[N]` are numbers of nodes; `token_ids` `[N]` the token each puts in front of its parent's context;
    `next_ids` `[N]` what mostly followed the context and `chances` `[N]` how likely it does, in (0, 1).
    """

    parents: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    next_ids: NDArray[np.int32]
    chances: NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.parents)

    def flaw(self, vocab_size: int) -> str | None:
        """What is wrong with them for a model of `vocab_size` tokens; None when nothing is."""
        arrays = vars(self).values()
        dtypes = {"parents": np.int32, "token_ids": np.int32, "next_ids": np.int32, "chances": np.float16}
        if any(getattr(self, name).dtype != dtype for name, dtype in dtypes.items()):
            return "a tensor has another dtype"
        if any(array.ndim != 1 or len(array) != len(self) for array in arrays) or not len(self):
            return "its tensors do not fit together"
        if self.parents.min() < 0 or (self.parents > np.arange(len(self))).any():
            return "a context does not come after the shorter one"
        for token_ids in (self.token_ids, self.next_ids):
            if not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
                return f"it has tokens that are not among the model's {vocab_size}"
        if not ((self.chances > 0.0) & (self.chances < 1.0)).all():  # so that NaN is none either
            return "a chance is none"
        return None


class NgramStore:
    """Says what mostly followed the longest known context. Nothing is ever added: a run leaves it as it was loaded."""

    def __init__(self, nodes: StoreNodes, content_hash: str | None = None, made_for: str | None = None) -> None:
        self.content_hash, self.made_for = content_hash, made_for  # the weights it is for, where another model's
        keys = (nodes.parents.astype(np.int64) << TOKEN_BITS) | nodes.token_ids
        self._children = dict(zip(keys.tolist(), range(1, len(nodes) + 1), strict=True))
        self._said = list(zip([-1, *nodes.next_ids.tolist()], [0.0, *nodes.chances.tolist()], strict=True))
        depths = np.zeros(len(nodes) + 1, np.int32)
        for node, parent in enumerate(nodes.parents.tolist(), start=1):
            depths[node] = depths[parent] + 1
        self.longest = int(depths.max())  # the longest context, in tokens

    def successor(self, token_ids: Sequence[int]) -> tuple[int, float] | None:
        """What follows the longest known context at the end of `token_ids`, and how likely; None where none is known."""
        children, node = self._children, 0
        for token_id in reversed(token_ids):
            child = children.get(node << TOKEN_BITS | token_id)
            if child is None:
                break
            node = child
        return self._said[node] if node else None


def save_store(folder: Path, nodes: StoreNodes, model: DecoderModel, made_from: str) -> None:
    """Writes `nodes` beside the heads in `folder`, whole or not at all; `made_from` names what decided them."""
    facts = {"format_version": FORMAT_VERSION, "base_model_hash": model.model_hash, "made_from": made_from}
    # one entry, as safetensors writes several in any order
    write_whole(folder / STORE, save(vars(nodes), {FACTS: json.dumps(facts)}))


def store_facts(folder: Path) -> dict[str, Any]:
    """What is said of the store in `folder` when it was made; nothing where there is none that can be read."""
    try:
        return _facts((folder / STORE).read_bytes())
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def load_store(folder: Path, model: DecoderModel, *, allows_foreign: bool = False) -> NgramStore | None:
    """The store beside the heads in `folder`; None where there is none.

    Raises ExitHeadsError when it cannot be read, is damaged, or was made for another model, unless that `allows_foreign`.
    """
    named = f"--heads {str(folder)!r}: {STORE}"
    try:
        raw = (folder / STORE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExitHeadsError(
            f"{named} cannot be read ({error.strerror}); check its permissions, or {REMEDY}"
        ) from error
    try:
        facts, tensors = _facts(raw), load(raw)
        nodes = StoreNodes(**{field.name: tensors.pop(field.name) for field in fields(StoreNodes)})
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise ExitHeadsError(f"{named} is damaged; {REMEDY} ({type(error).__name__})") from error
    if (version := facts.get("format_version")) != FORMAT_VERSION:
        raise ExitHeadsError(
            f"{named} has format_version {shown(version)}, this program knows {FORMAT_VERSION}; {REMEDY}"
        )
    foreign = check_made_for(named, facts.get("base_model_hash"), model, REMEDY, allows_foreign=allows_foreign)
    flaw = f"it has tensors {shown(sorted(tensors))} too" if tensors else nodes.flaw(model.vocab_size)
    if flaw is not None:
        raise ExitHeadsError(f"{named} is damaged: {flaw}; {REMEDY}")
    return NgramStore(nodes, short_hash(raw), foreign)


def _facts(raw: bytes) -> dict[str, Any]:
    """The facts in the header of a safetensors file; raises ValueError, LookupError or TypeError where there are none."""
    header = from_json(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    facts = from_json(header["__metadata__"][FACTS])
    if not isinstance(facts, dict):
        raise TypeError(facts)
    return cast("dict[str, Any]", facts)
