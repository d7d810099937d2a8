"""The n-gram store: what it says of a context, and how it lies beside heads."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from adadecode.errors import ExitHeadsError
from adadecode.model.head_files import load_heads, save_heads
from adadecode.model.head_tensors import HeadTensors
from adadecode.model.ngram_store import (
    NODE_BYTES,
    STORE,
    NgramStore,
    StoreNodes,
    load_store,
    save_store,
    store_facts,
)
from tests.folders import tiny_facts
from tests.models import random_transforms, tiny_model

# after 5: 7; after 4 5: 8; after 6: 9; after 2 1 5: 3
NODES = StoreNodes(
    np.array([0, 0, 1, 1, 4], np.int32),
    np.array([5, 6, 4, 1, 2], np.int32),
    np.array([7, 9, 8, 7, 3], np.int32),
    np.array([0.5, 0.25, 0.75, 0.5, 0.875], np.float16),
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """Heads beside a store."""
    parts = {e: (t,) for e, t in random_transforms(model, (1, 3)).items()}
    save_heads(tmp_path / "heads", HeadTensors(parts), tiny_facts(model, (1, 3)))
    save_store(tmp_path / "heads", NODES, model, "these outputs")
    return tmp_path / "heads"


def write(folder: Path, tensors: dict[str, np.ndarray], facts: object) -> None:
    """A store of `tensors` and `facts`, whatever they are."""
    (folder / STORE).write_bytes(save(tensors, {"facts": json.dumps(facts)}))


def refusal(folder: Path, model) -> str:
    with pytest.raises(ExitHeadsError) as caught:
        load_heads(folder, model)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize(
    ("token_ids", "said"),
    [
        ([5], (7, 0.5)),
        ([4, 5], (8, 0.75)),
        ([9, 9, 4, 5], (8, 0.75)),
        ([2, 1, 5], (3, 0.875)),
        ([3, 1, 5], (7, 0.5)),
        ([5, 6], (9, 0.25)),
        ([5, 4], None),
        ([], None),
    ],
)
def test_the_longest_known_context_speaks(token_ids, said):
    assert NgramStore(NODES).successor(token_ids) == said


def test_the_longest_context_is_known():
    assert NgramStore(NODES).longest == 3


def test_a_store_that_was_asked_says_the_same_again():
    store = NgramStore(NODES)
    questions = [random.Random(idx).choices(range(10), k=4) for idx in range(200)]
    first = [store.successor(question) for question in questions]
    assert [store.successor(question) for question in reversed(questions)] == first[::-1]


def test_a_saved_store_comes_back_beside_the_heads(folder, model):
    store, expected = load_heads(folder, model).store, NgramStore(NODES)
    assert store is not None
    for context in ([5], [4, 5], [2, 1, 5], [6]):
        assert store.successor(context) == expected.successor(context)
    assert store_facts(folder)["made_from"] == "these outputs"


def test_a_node_takes_as_many_bytes_as_are_counted(folder):
    raw = (folder / STORE).read_bytes()
    header_len = int.from_bytes(raw[:8], "little")
    assert len(raw) - 8 - header_len == NODE_BYTES * len(NODES)


def test_heads_without_a_store_have_none_and_their_own_hash(folder, model):
    beside = load_heads(folder, model).content_hash
    (folder / STORE).unlink()
    heads = load_heads(folder, model)
    assert heads.store is None
    assert heads.content_hash != beside


def test_the_hash_of_heads_tells_one_store_from_another(folder, model):
    first = load_heads(folder, model).content_hash
    assert load_heads(folder, model).content_hash == first
    save_store(folder, replace(NODES, chances=NODES.chances[::-1].copy()), model, "these outputs")
    assert load_heads(folder, model).content_hash != first


def test_a_gate_leaves_the_store_beside_the_heads(folder, model):
    heads = load_heads(folder, model)
    assert heads.with_gate(0.0).store is heads.store


@pytest.mark.parametrize("kept_share", [0.0, 0.02, 0.5, 0.9])
def test_a_store_that_was_cut_off_is_refused_in_one_line(folder, model, kept_share):
    raw = (folder / STORE).read_bytes()
    (folder / STORE).write_bytes(raw[: int(kept_share * len(raw))])
    assert f"{STORE} is damaged; delete {STORE} to draft without, or make it again" in refusal(folder, model)
    assert store_facts(folder).get("made_from") in (None, "these outputs")


def test_a_store_of_another_model_is_refused(folder, model):
    save_store(folder, NODES, tiny_model(seed=1), "these outputs")
    assert f"this model's are {model.model_hash}" in refusal(folder, model)


def test_a_store_that_cannot_be_read_is_refused(folder, model):
    (folder / STORE).unlink()
    (folder / STORE).mkdir()
    assert f"{STORE} cannot be read (Is a directory)" in refusal(folder, model)
    assert store_facts(folder) == {}


@pytest.mark.parametrize("version", [2, None, "1", [], "\x1b[2J" * 100])
def test_a_store_of_another_format_version_is_refused(folder, model, version):
    facts = {"base_model_hash": model.model_hash} | ({} if version is None else {"format_version": version})
    write(folder, vars(NODES), facts)
    assert "has format_version" in refusal(folder, model)


@pytest.mark.parametrize(
    ("changed", "flaw"),
    [
        ({"parents": np.array([0, 0, 1, 1, 6], np.int32)}, "a context does not come after the shorter one"),
        ({"parents": np.array([0, 0, 1, 1, 5], np.int32)}, "a context does not come after the shorter one"),
        ({"parents": np.array([0, 0, -1, 1, 4], np.int32)}, "a context does not come after the shorter one"),
        ({"token_ids": np.array([5, 6, 4, 1, 97], np.int32)}, "it has tokens that are not among the model's 97"),
        ({"next_ids": np.array([7, -1, 8, 7, 3], np.int32)}, "it has tokens that are not among the model's 97"),
        ({"chances": np.array([0.5, 0.5, 0.5, 0.5, 1.0], np.float16)}, "a chance is none"),
        ({"chances": np.array([0.5, 0.5, 0.5, 0.5, 0.0], np.float16)}, "a chance is none"),
        ({"chances": np.array([0.5, 0.5, np.nan, 0.5, 0.5], np.float16)}, "a chance is none"),
        ({"chances": np.full(5, 0.5, np.float32)}, "a tensor has another dtype"),
        ({"parents": np.array([0, 0, 1, 1], np.int32)}, "its tensors do not fit together"),
        ({"next_ids": np.array([[7, 9, 8, 7, 3]], np.int32)}, "its tensors do not fit together"),
        ({name: np.empty(0, array.dtype) for name, array in vars(NODES).items()}, "its tensors do not fit together"),
        ({"more": np.zeros(1)}, 'it has tensors ["more"] too'),
    ],
)
def test_a_store_that_makes_no_sense_is_refused(folder, model, changed, flaw):
    write(folder, vars(NODES) | changed, {"format_version": 1, "base_model_hash": model.model_hash})
    assert f"{STORE} is damaged: {flaw}; delete" in refusal(folder, model)


@pytest.mark.parametrize("missing", list(vars(NODES)))
def test_a_store_that_lacks_a_tensor_is_refused(folder, model, missing):
    tensors = {name: array for name, array in vars(NODES).items() if name != missing}
    write(folder, tensors, {"format_version": 1, "base_model_hash": model.model_hash})
    assert f"{STORE} is damaged; delete" in refusal(folder, model)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{}", b'{"__metadata__": 3}', b'{"__metadata__": {"facts": "[]"}}', b"null", b"\xff", b"[" * 5000],
)
def test_a_header_that_is_none_is_refused(folder, model, header):
    (folder / STORE).write_bytes(len(header).to_bytes(8, "little") + header)
    assert STORE in refusal(folder, model)
    assert store_facts(folder) == {}


def test_the_tensors_on_disk_are_the_nodes(folder, model):
    tensors = load((folder / STORE).read_bytes())
    assert {name: array.tolist() for name, array in tensors.items()} == {n: a.tolist() for n, a in vars(NODES).items()}
    assert load_store(folder, model) is not None
