"""Builds the n-gram store of a model from its own outputs, each counted once however often it repeats itself.

The chance that a token follows a context is counted in outputs, and drawn towards the chance it has after the context
that is one token shorter, as if STRENGTH outputs had been seen there (a hierarchy of Dirichlet priors, MacKay and Peto
1995). A context is left out when too few outputs have it, or when it says what the shorter one says.
P positions of tokens to come, C contexts of one length, F pairs of a context and what followed it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadecode.errors import ExitHeadsError
from adadecode.files import short_hash
from adadecode.model.decoder import DecoderModel
from adadecode.model.ngram_store import NODE_BYTES, STORE, NgramStore, StoreNodes, load_store, save_store, store_facts
from adadecode.records import Say
from adadecode.settings import TrainConfig
from adadecode.training.outputs import GreedyOutput, Part
from adadecode.training.stream import OutputStream

LONGEST_CONTEXT = 6  # in tokens
STRENGTH = 6.0  # with it the chances hold on other outputs as they are (tests/efficiency/fit_ngrams.py)
FEWEST_OUTPUTS = 2  # that have a context; more where the store would be too large
LEAST_DIFFERENCE = 0.05  # in a chance, for a longer context to say something else
LEAST_CHANCE, MOST_CHANCE = 1e-4, 0.999  # what is kept of a chance
MOST_TOKENS = 4_000_000  # that are read
MEGABYTE = 10**6
NO_TOKEN = -1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Level(NamedTuple):
    """The contexts of one length, each after those it continues: its place among the shorter ones, and what it says."""

    parents: Ints  # [C], into the level before
    token_ids: Ints  # [C], the oldest of the context
    next_ids: Ints  # [C]
    chances: Floats  # [C]
    num_outputs: Ints  # [C], outputs by what followed: one in which two tokens did counts twice


@dataclass(frozen=True)
class Texts:
    """Outputs after the ends of their prompts as one row of tokens, and the positions in it of tokens to come.

    `outputs` are the numbers of the outputs that the `positions` are in.
    """

    token_ids: Ints
    positions: Ints  # [P]
    outputs: Ints  # [P]

    @property
    def next_ids(self) -> Ints:
        """The tokens at the positions, `[P]`."""
        return self.token_ids[self.positions]

    def kept(self, mask: Mask) -> "Texts":
        """These at the positions of `mask` alone."""
        return Texts(self.token_ids, self.positions[mask], self.outputs[mask])


def make_store(
    model: DecoderModel, stream: OutputStream, parts: list[Part], config: TrainConfig, out: Path, say: Say
) -> None:
    """Makes the store of the heads in `out` from what `stream` trains on of `parts`; none where `config` wants none.

    One that was made from the same is left as it is. Says what is in it and how often it is right on held-out outputs.
    """
    max_nodes = int(config.store_mb * MEGABYTE) // NODE_BYTES
    split = [config.seed, config.held_out, [part.content_hash for part in parts]]
    how = [max_nodes, LONGEST_CONTEXT, STRENGTH, FEWEST_OUTPUTS, LEAST_DIFFERENCE, MOST_TOKENS]
    made_from = short_hash(json.dumps([split, how]))
    if max_nodes and is_made(out, model, made_from):
        say(f"{out / STORE}: made before from these outputs")
        return
    (out / STORE).unlink(missing_ok=True)
    if not max_nodes:
        return
    nodes = build_nodes(stream.train_outputs(), max_nodes)
    if not len(nodes):
        say("n-gram store: no context is in enough outputs; none is kept")
        return
    save_store(out, nodes, model, made_from)
    store = NgramStore(nodes)
    held_out = (output for batch in stream.held_out_batches() for output in batch)
    num_tokens, num_known, num_right = judge(store, held_out)
    say(
        f"n-gram store: {len(nodes)} contexts to {store.longest} tokens, {len(nodes) * NODE_BYTES / MEGABYTE:.2f} MB; "
        f"proposes {num_known / max(1, num_tokens):.1%} of {num_tokens} held-out tokens, "
        f"{num_right / max(1, num_known):.1%} of them rightly"
    )


def is_made(out: Path, model: DecoderModel, made_from: str) -> bool:
    """Whether the store in `out` was made for `model` from what `made_from` names, and is whole."""
    try:
        return store_facts(out).get("made_from") == made_from and load_store(out, model) is not None
    except ExitHeadsError:
        return False


def judge(store: NgramStore, outputs: Iterable[GreedyOutput]) -> tuple[int, int, int]:
    """Of tokens to come in `outputs`: how many there are, where `store` knows the context, and where it is right."""
    num_tokens = num_known = num_right = 0
    for prompt_ids, output_ids in outputs:
        text = [*prompt_ids, *output_ids]
        for idx in range(len(prompt_ids) + 1, len(text)):
            found = store.successor(text[max(0, idx - store.longest) : idx])
            num_tokens += 1
            num_known += found is not None
            num_right += found is not None and found[0] == text[idx]
    return num_tokens, num_known, num_right


def build_nodes(outputs: Iterable[GreedyOutput], max_nodes: int) -> StoreNodes:
    """The store's tree of `outputs`, of at most `max_nodes` contexts: where there are more, those that most outputs have.

    Reads outputs up to MOST_TOKENS tokens. The same outputs give the same tree.
    """
    levels = list(levels_of(read_texts(outputs)))
    fewest, kept = FEWEST_OUTPUTS, worth_keeping(levels, FEWEST_OUTPUTS)
    while sum(int(mask.sum()) for mask in kept) > max_nodes:
        fewest = max(fewest + 1, fewest * 11 // 10)
        kept = worth_keeping(levels, fewest)
    return joined(levels, kept)


def read_texts(outputs: Iterable[GreedyOutput]) -> Texts:
    """`outputs` as arrays, as many as MOST_TOKENS has room for.

    The first token of an output is none that is to come: no round drafts it.
    """
    pieces, positions, numbers = [np.full(LONGEST_CONTEXT, NO_TOKEN)], list[Ints](), list[Ints]()
    length = LONGEST_CONTEXT
    for number, (prompt_ids, output_ids) in enumerate(outputs):
        before = prompt_ids[-LONGEST_CONTEXT:]
        # what separates two texts is a context of nothing
        piece = np.array([*[NO_TOKEN] * (LONGEST_CONTEXT - len(before)), *before, *output_ids])
        if length + len(piece) > MOST_TOKENS:
            break
        positions.append(np.arange(length + LONGEST_CONTEXT + 1, length + len(piece)))
        numbers.append(np.full(len(output_ids) - 1, number))
        pieces.append(piece)
        length += len(piece)
    none = np.empty(0, np.int64)
    return Texts(np.concatenate(pieces), np.concatenate([none, *positions]), np.concatenate([none, *numbers]))


def levels_of(texts: Texts) -> Iterator[Level]:
    """Contexts of 1, 2, ... tokens that FEWEST_OUTPUTS have, as long as there are any, each with what follows it."""
    num_tokens = int(texts.token_ids.max()) + 1
    contexts = np.zeros(len(texts.positions), np.int64)  # before each position, the shorter one
    _, _, chances = what_follows(texts, contexts, np.zeros(len(contexts)), num_tokens)  # after the shorter context
    for length in range(1, LONGEST_CONTEXT + 1):
        oldest = texts.token_ids[texts.positions - length]
        goes_on = oldest != NO_TOKEN
        texts, keys = texts.kept(goes_on), (contexts * num_tokens + oldest)[goes_on]
        found, contexts = np.unique(keys, return_inverse=True)
        said, num_outputs, chances = what_follows(texts, contexts, chances[goes_on], num_tokens)
        is_kept = num_outputs >= FEWEST_OUTPUTS
        if not is_kept.any():
            return
        above, token_ids = np.divmod(found[is_kept], num_tokens)
        yield Level(above, token_ids, said.next_ids[is_kept], said.chances[is_kept], num_outputs[is_kept])
        stays = is_kept[contexts]
        texts, chances = texts.kept(stays), chances[stays]
        contexts = (np.cumsum(is_kept) - 1)[contexts[stays]]


class Said(NamedTuple):
    """What is likeliest after each of C contexts, and how likely it is."""

    next_ids: Ints
    chances: Floats


def what_follows(texts: Texts, contexts: Ints, shorter: Floats, num_tokens: int) -> tuple[Said, Ints, Floats]:
    """What the contexts say, how many outputs have them `[C]`, and how likely what follows is at each position `[P]`.

    `contexts` and `shorter` `[P]` are the context before each of the positions, and how likely what follows there is after
    the context that is a token shorter.
    """
    pairs, pair_of = np.unique(contexts * num_tokens + texts.next_ids, return_inverse=True)
    of_context, next_ids = np.divmod(pairs, num_tokens)
    num_texts = int(texts.outputs.max(initial=0)) + 1
    once = np.unique(pair_of * num_texts + texts.outputs) // num_texts
    counts = np.bincount(once, minlength=len(pairs))
    num_outputs = np.bincount(of_context, counts).astype(np.int64)
    prior = np.empty(len(pairs))
    prior[pair_of] = shorter
    chances = (counts + STRENGTH * prior) / (num_outputs[of_context] + STRENGTH)
    in_order = np.lexsort((next_ids, -chances, of_context))
    best = in_order[np.searchsorted(of_context, np.arange(len(num_outputs)))]  # of the pairs of each context the first
    return Said(next_ids[best], chances[best]), num_outputs, chances[pair_of]


def worth_keeping(levels: list[Level], fewest: int) -> list[Mask]:
    """Of each level the contexts that `fewest` outputs have and that say something new, or lead to one that does."""
    kept: list[Mask] = []
    below, of_next = None, None
    for length in range(len(levels) - 1, -1, -1):
        level = levels[length]
        is_new = np.ones(len(level.parents), bool)
        if length:
            shorter, above = levels[length - 1], level.parents
            is_new = shorter.next_ids[above] != level.next_ids
            is_new |= np.abs(shorter.chances[above] - level.chances) >= LEAST_DIFFERENCE
        mask = is_new & (level.num_outputs >= fewest)
        if below is not None and of_next is not None:
            mask[below.parents[of_next]] = True
        kept.append(mask)
        below, of_next = level, mask
    return kept[::-1]


def joined(levels: list[Level], kept: list[Mask]) -> StoreNodes:
    """The nodes of the contexts in `levels` that are `kept`, numbered from 1 on, the shorter ones first."""
    columns: list[tuple[NDArray, ...]] = []
    numbers, num_nodes = np.zeros(1, np.int64), 0  # of the level before
    for level, mask in zip(levels, kept, strict=True):
        chances = level.chances[mask].clip(LEAST_CHANCE, MOST_CHANCE)
        columns.append((numbers[level.parents[mask]], level.token_ids[mask], level.next_ids[mask], chances))
        numbers = num_nodes + np.cumsum(mask)
        num_nodes += int(mask.sum())
    parents, token_ids, next_ids, chances = (
        (np.concatenate(parts) for parts in zip(*columns, strict=True)) if columns else np.empty((4, 0))
    )
    return StoreNodes(
        parents.astype(np.int32), token_ids.astype(np.int32), next_ids.astype(np.int32), chances.astype(np.float16)
    )
