"""What a tuning is about: a loaded model, its heads and the space of policies."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adadecode.engine.policy import check_heads_at
from adadecode.engine.sampling import draw_of
from adadecode.errors import ExitHeadsError
from adadecode.files import short_hash
from adadecode.kernels.sampling import Draw
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.foreign import foreign_facts
from adadecode.model.head_files import load_heads
from adadecode.model.load import chat_template_hash
from adadecode.records import Prompt
from adadecode.settings import DRAWN_BEFORE, HeadKind, TuneConfig
from adadecode.tuning.trace import Floors, TraceSpace


@dataclass(frozen=True)
class TuneSubject:
    """A loaded model with its heads per task, as they are traced and in full, and the space that is searched.

    The floors of the space are none until it is known what pays here.
    """

    config: TuneConfig
    model: DecoderModel
    tokenizer: Any
    head: HeadKind
    heads: dict[str, ExitHeads]
    full_heads: dict[str, ExitHeads] | None  # None where the heads have no full form
    space: TraceSpace

    @property
    def has_gates(self) -> bool:
        return all(of_task.gates for of_task in self.heads.values())

    def draw(self, task: str, sample_id: str, prompt_len: int) -> Draw | None:
        """How the output of a prompt of `prompt_len` tokens is drawn; None where the likeliest tokens are taken."""
        return draw_of(self.config, self.config.sampling_key(task, sample_id), prompt_len)

    def _sampling(self) -> dict[str, Any]:
        """The settings by which tokens are drawn, where they are: traces of before drew none."""
        names = DRAWN_BEFORE if self.config.is_sampled else ()
        return {name: getattr(self.config, name) for name in names}

    def made_from(self, prompts: list[Prompt]) -> dict[str, Any]:
        """What a trace of `prompts` depends on, beside its floors."""
        space = asdict(self.space)
        del space["floors"]
        return {
            "model_hash": self.model.model_hash,
            "tokenizer_hash": hash_tokenizer(self.tokenizer),
            "heads_hash": {task: of_task.content_hash for task, of_task in self.heads.items()},
            **foreign_facts(self.heads),
            "head": self.head,
            "dtype": self.config.dtype,
            "kernels": self.model.kernels,
            "device": self.config.device,
            "eos_token_ids": sorted(self.model.eos_token_ids),
            "context_len": self.model.context_len,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "space": json.loads(json.dumps(space)),
            **self._sampling(),
            "prompts_hash": _hash([(p.task, p.sample_id, p.token_ids) for p in prompts]),
        }


def load_subject(config: TuneConfig, model: DecoderModel, tokenizer: Any, folders: dict[str, Path]) -> TuneSubject:
    """`model` with the heads in `folders`, one per task, to be tuned; raises ExitHeadsError and UsageError."""
    head = config.head or _cheapest_head(config, folders, model)
    heads = {
        task: load_heads(folder, model, head, allows_foreign=config.foreign_heads) for task, folder in folders.items()
    }
    full_heads = heads if head == "full" else _full_heads(config, folders, model)
    common = set.intersection(*(set(of_task.exits) for of_task in heads.values()))
    exits = config.exits or tuple(sorted(common))
    check_heads_at(exits, tuple(sorted(common)))
    blocks = {test.head.block for set_ in heads.values() for test in set_.tests} - {None}
    block_exits = tuple(sorted({block.exit_layer for block in blocks if block is not None} & set(exits)))
    floors = Floors((0.0,) * len(exits), 0.0)
    space = TraceSpace(exits, config.max_drafts, floors, config.max_new_tokens, block_exits)
    return TuneSubject(config, model, tokenizer, head, heads, full_heads, space)


def _full_heads(config: TuneConfig, folders: dict[str, Path], model: DecoderModel) -> dict[str, ExitHeads] | None:
    """The heads in `folders` over the whole vocabulary; None when they have no such form."""
    try:
        return {
            task: load_heads(folder, model, allows_foreign=config.foreign_heads) for task, folder in folders.items()
        }
    except ExitHeadsError:
        return None


def _cheapest_head(config: TuneConfig, folders: dict[str, Path], model: DecoderModel) -> HeadKind:
    """`shortlist` when all heads have one, else `full`."""
    try:
        for folder in folders.values():
            load_heads(folder, model, "shortlist", allows_foreign=config.foreign_heads)
    except ExitHeadsError:
        return "full"
    return "shortlist"


def hash_tokenizer(tokenizer: Any) -> str:
    """A 16-digit hash of a tokenizer's vocabulary and chat template."""
    return _hash([sorted(tokenizer.get_vocab().items()), chat_template_hash(tokenizer)])


def _hash(value: Any) -> str:
    return short_hash(json.dumps(value))
