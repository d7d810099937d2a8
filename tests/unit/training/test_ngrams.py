"""The n-gram store that a training makes: what is counted, what is kept, and when it is made anew."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adadecode.model.head_files import load_heads
from adadecode.model.ngram_store import NODE_BYTES, STORE, NgramStore, StoreNodes, load_store, save_store, store_facts
from adadecode.settings import TrainConfig
from adadecode.training import ngrams
from adadecode.training.ngrams import (
    FEWEST_OUTPUTS,
    LEAST_DIFFERENCE,
    LONGEST_CONTEXT,
    STRENGTH,
    build_nodes,
    judge,
)
from adadecode.training.outputs import GreedyOutput
from adadecode.training.train import train_heads
from tests.models import tiny_model
from tests.unit.training.test_distill import CONFIG, PROMPTS

MANY = 10**6


def store_of(*outputs: tuple[list[int], list[int]], max_nodes: int = MANY) -> NgramStore:
    return NgramStore(build_nodes([GreedyOutput(*output) for output in outputs], max_nodes))


def contexts_of(nodes: StoreNodes) -> dict[tuple[int, ...], tuple[int, float]]:
    """What is said after each context, oldest token first."""
    contexts: list[tuple[int, ...]] = [()]
    for parent, token_id in zip(nodes.parents.tolist(), nodes.token_ids.tolist(), strict=True):
        contexts.append((token_id, *contexts[parent]))
    said = zip(nodes.next_ids.tolist(), nodes.chances.tolist(), strict=True)
    return dict(zip(contexts[1:], said, strict=True))


def searched(outputs: list[GreedyOutput]) -> dict[tuple[int, ...], tuple[int, float]]:
    """What a store says, by looking through all of `outputs` again for each context: no arrays."""
    seen: dict[tuple[int, ...], dict[int, set[int]]] = {}
    for number, (prompt_ids, output_ids) in enumerate(outputs):
        text = [*prompt_ids, *output_ids]
        for idx in range(len(prompt_ids) + 1, len(text)):
            for length in range(min(LONGEST_CONTEXT, idx) + 1):
                seen.setdefault(tuple(text[idx - length : idx]), {}).setdefault(text[idx], set()).add(number)
    chances: dict[tuple[int, ...], dict[int, float]] = {}
    said: dict[tuple[int, ...], tuple[int, float]] = {}
    for context in sorted(seen, key=len):
        followed = seen[context]
        total = sum(map(len, followed.values()))
        if total >= FEWEST_OUTPUTS:
            shorter = chances[context[1:]] if context else dict.fromkeys(followed, 0.0)
            of = {t: (len(in_) + STRENGTH * shorter[t]) / (total + STRENGTH) for t, in_ in followed.items()}
            chances[context], said[context] = of, min(of.items(), key=lambda one: (-one[1], one[0]))
    said.pop((), None)
    new = {
        context
        for context, (token_id, chance) in said.items()
        if len(context) == 1
        or said[context[1:]][0] != token_id
        or abs(said[context[1:]][1] - chance) >= LEAST_DIFFERENCE
    }
    return {
        c: found for c, found in said.items() if any(one[len(one) - len(c) :] == c for one in new if len(one) >= len(c))
    }


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    texts=st.lists(
        st.tuples(
            st.lists(st.integers(0, 3), min_size=1, max_size=9), st.lists(st.integers(0, 3), min_size=1, max_size=9)
        ),
        max_size=5,
    )
)
def test_the_arrays_find_what_a_search_finds(texts):
    outputs = [GreedyOutput(*text) for text in texts]
    found, expected = contexts_of(build_nodes(outputs, MANY)), searched(outputs)
    assert found.keys() == expected.keys()
    for context, (token_id, chance) in expected.items():
        assert found[context] == (token_id, pytest.approx(chance, abs=1e-3)), context


def test_what_one_output_says_often_counts_once():
    often = ([1], [0, *[5, 6] * 20])
    assert store_of(often, ([1], [0, 9, 9])).successor([5]) is None
    store = store_of(often, ([1], [0, 5, 7]), ([2], [0, 5, 7]))
    assert store.successor([5])[0] == 7, "two outputs go on with 7, one with 6"


def test_the_first_token_of_an_output_is_none_to_be_drafted():
    assert len(build_nodes([GreedyOutput([1, 2], [5]), GreedyOutput([1, 2], [5])], MANY)) == 0


def test_a_context_reaches_into_the_prompt_and_not_into_another_text():
    store = store_of(([8, 1, 2], [5, 6]), ([8, 1, 2], [5, 6]), ([9, 1, 2], [5, 7]), ([9, 1, 2], [5, 7]))
    assert store.successor([8, 1, 2, 5])[0] == 6
    assert store.successor([9, 1, 2, 5])[0] == 7
    nodes = build_nodes([GreedyOutput([3], [4, 5]), GreedyOutput([3], [4, 5])], MANY)
    assert max(map(len, contexts_of(nodes))) <= 2


def test_a_longer_context_is_kept_where_it_says_something_else():
    same = [([1, 2], [5, 6])] * 60
    assert set(contexts_of(build_nodes([GreedyOutput(*one) for one in same], MANY))) == {(5,)}
    other = [*same, *[([1, 3], [5, 7])] * 60]
    assert {(2, 5), (3, 5)} <= set(contexts_of(build_nodes([GreedyOutput(*one) for one in other], MANY)))


def random_outputs(num_outputs: int, seed: int = 0) -> list[GreedyOutput]:
    """Outputs that have much in common, such as a model's: walks over a few words."""
    rng = random.Random(seed)
    words = [rng.choices(range(30), k=rng.randint(1, 6)) for _ in range(12)]
    return [
        GreedyOutput(rng.choices(range(30), k=8), [t for word in rng.choices(words, k=10) for t in word])
        for _ in range(num_outputs)
    ]


@pytest.mark.parametrize("max_nodes", [0, 1, 7, 50, 200])
def test_a_store_has_no_more_contexts_than_it_may_and_keeps_the_frequent(max_nodes):
    outputs = random_outputs(60)
    every, some = build_nodes(outputs, MANY), build_nodes(outputs, max_nodes)
    assert len(every) > 200
    assert len(some) <= max_nodes
    assert contexts_of(some).items() <= contexts_of(every).items()
    assert len(some) or max_nodes < 50
    counted = Counter(t for output in outputs for t in output.output_ids)
    if len(some):
        kept, dropped = ({c[0] for c in contexts_of(nodes) if len(c) == 1} for nodes in (some, every))
        assert min(counted[t] for t in kept) * 2 > max((counted[t] for t in dropped - kept), default=0)


def test_the_same_outputs_give_the_same_store():
    first, again = (build_nodes(random_outputs(40), 100) for _ in range(2))
    assert all((a == b).all() for a, b in zip(vars(first).values(), vars(again).values(), strict=True))


def test_no_more_tokens_are_read_than_there_is_room_for(monkeypatch):
    outputs = random_outputs(60)
    one_len = max(LONGEST_CONTEXT + len(output.output_ids) for output in outputs)
    monkeypatch.setattr(ngrams, "MOST_TOKENS", 11 * one_len)
    read = ngrams.read_texts(outputs)
    assert len(read.token_ids) <= 11 * one_len
    assert 10 <= read.outputs.max() < 59


def test_what_is_said_is_right_as_often_as_it_claims():
    """The chances hold on outputs that were not read, as they are."""
    store = NgramStore(build_nodes(random_outputs(300), MANY))
    claimed, right = [], []
    for prompt_ids, output_ids in random_outputs(400)[300:]:
        text = [*prompt_ids, *output_ids]
        for idx in range(len(prompt_ids) + 1, len(text)):
            if (said := store.successor(text[idx - store.longest : idx])) is not None:
                claimed.append(said[1])
                right.append(said[0] == text[idx])
    assert len(claimed) > 2000
    assert sum(claimed) / len(claimed) == pytest.approx(sum(right) / len(right), abs=0.06)


def test_judging_counts_tokens_to_come():
    store = store_of(([1], [5, 6, 7]), ([1], [5, 6, 7]))
    assert judge(store, [GreedyOutput([1], [5, 6, 8]), GreedyOutput([1], [9])]) == (2, 2, 1)
    assert judge(store, []) == (0, 0, 0)


def train(out: Path, **changed: object) -> list[str]:
    """What a training of heads nobody trains says."""
    taught = CONFIG.model_dump(exclude={"kind", "epochs", "learning_rate"})
    lines: list[str] = []
    train_heads(tiny_model(), PROMPTS, TrainConfig(**(taught | changed), kind="original"), out, lines.append)
    return lines


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("heads")
    return out, train(out)


def test_a_training_leaves_a_store_beside_the_heads(trained):
    out, lines = trained
    assert load_store(out, tiny_model()) is not None
    assert load_heads(out, tiny_model(), "shortlist").store is not None
    (line,) = [line for line in lines if line.startswith("n-gram store: ")]
    assert "held-out tokens" in line
    assert line.isprintable()


def test_a_store_that_was_made_before_is_left_and_another_size_makes_another(trained, tmp_path):
    out, _ = trained
    before = (out / STORE).stat().st_mtime_ns
    assert f"{out / STORE}: made before from these outputs" in train(out)
    assert (out / STORE).stat().st_mtime_ns == before
    raw = (out / STORE).read_bytes()
    num_nodes = 10
    lines = train(out, store_mb=num_nodes * NODE_BYTES / 10**6)
    assert any(line.endswith("delete the folder to train them again") for line in lines), "the heads stay as they are"
    assert len((out / STORE).read_bytes()) < len(raw)
    train(out)
    assert (out / STORE).read_bytes() == raw


def test_a_store_of_another_model_is_made_again(trained, tmp_path):
    """Two models may have said the same."""
    out, _ = trained
    facts = store_facts(out)
    save_store(out, build_nodes(random_outputs(9), MANY), tiny_model("qwen2"), facts["made_from"])
    train(out)
    assert load_store(out, tiny_model()) is not None


def test_no_megabytes_are_no_store(trained):
    out, _ = trained
    lines = train(out, store_mb=0)
    assert not (out / STORE).exists()
    assert not any("n-gram store" in line for line in lines)
    assert load_heads(out, tiny_model(), "shortlist").store is None
    train(out)
    assert (out / STORE).exists()


@pytest.mark.parametrize("num_kept", [50, -3])
def test_a_damaged_store_is_made_again(trained, num_kept):
    out, _ = trained
    raw = (out / STORE).read_bytes()
    (out / STORE).write_bytes(raw[:num_kept])
    train(out)
    assert (out / STORE).read_bytes() == raw


def test_outputs_without_anything_in_common_leave_no_store(tmp_path):
    lines = train(tmp_path, max_new_tokens=1)
    assert "n-gram store: no context is in enough outputs; none is kept" in lines
    assert not (tmp_path / STORE).exists()
