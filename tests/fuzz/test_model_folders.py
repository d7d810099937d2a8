"""Model and heads folders whose JSON is odd: they load, or one line says why not; no code of theirs runs."""

import contextlib
import copy
import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadecode.engine.generate import Request, generate
from adadecode.errors import AdaDecodeError
from adadecode.model.head_files import FACTS, load_heads
from adadecode.model.load import load_model
from adadecode.model.ngram_store import STORE, save_store
from adadecode.settings import ModelSettings
from adadecode.training.ngrams import build_nodes
from adadecode.training.outputs import GreedyOutput
from tests.folders import save_tiny_heads, save_tiny_model
from tests.fuzz.cases import fuzzed
from tests.models import tiny_model

INDEX = "model.safetensors.index.json"
CODE = "import pathlib\npathlib.Path({marker!r}).touch()\n"
EXTRA_KEYS = [
    "auto_map",
    "quantization_config",
    "per_layer_config",
    "rope_scaling",
    "rope_parameters",
    "layer_types",
    "sliding_window",
    "dtype",
    "torch_dtype",
    "attn_implementation",
    "_attn_implementation",
    "transformers_weights",
    "configuration_files",
    "custom_generate",
    "tokenizer_class",
    "chat_template",
    "extra_special_tokens",
    "added_tokens_decoder",
    "eos_token_id",
    "pad_token_id",
    "id2label",
    "num_labels",
    "partial_rotary_factor",
    "tie_word_embeddings",
    "is_encoder_decoder",
    "max_length",
    "temperature",
]
ODD = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2**31, 2**63, 10**12, -(10**30), 0.5, 1e308, float("nan"), float("inf")]
    ),
    st.sampled_from(
        ["", "8", "x", "\x1b[2J\n", "../../x", "a" * 300, "\udc00", "eager", "org/kernel:x", "LlamaTokenizer"]
    ),
    st.sampled_from([[], {}, [None], [[[[]]]], {"": {}}, {"a": 1}, ["code.X", "code.X"], {"AutoConfig": "code.X"}]),
    st.sampled_from(
        [{"rope_type": "yarn"}, {"rope_type": "llama3", "factor": 0}, {"type": "longrope"}, {"0": {"a": 1}}]
    ),
    st.integers(),
    st.text(max_size=3),
)


def plain(value: Any) -> Any:
    """A copy, so that nothing a strategy holds is changed."""
    return copy.deepcopy(value)


@st.composite
def odd_json(draw: Any, original: bytes) -> bytes:
    """The JSON object `original` with some of it deleted, replaced, nested or added, or its bytes cut."""
    tree = json.loads(original)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = tree, draw(st.sampled_from(list(tree) or [""]))
        while (
            isinstance(holder, dict)
            and isinstance(holder.get(key), dict | list)
            and holder[key]
            and draw(st.booleans())
        ):
            below = holder[key]
            if isinstance(below, list):
                below = {"in": below[draw(st.integers(0, len(below) - 1))]}
            holder, key = below, draw(st.sampled_from(list(below)))
        match draw(st.sampled_from(["delete", "replace", "replace", "nest", "add"])):
            case "delete":
                holder.pop(key, None)
            case "replace":
                holder[key] = plain(draw(ODD))
            case "nest":
                holder[key] = [holder.get(key)]
            case _:
                holder[draw(st.sampled_from(EXTRA_KEYS))] = plain(draw(ODD))
    raw = json.dumps(tree).encode()
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 9)) == 0 else raw


class Folder(NamedTuple):
    """A folder with JSON files to change, whose Python files would leave `marker` behind."""

    path: Path
    files: dict[str, bytes]
    marker: Path

    def write(self, file: str, content: bytes) -> None:
        """Makes `content` that of `file`, and all other files what they were."""
        for name, original in self.files.items():
            (self.path / name).write_bytes(content if name == file else original)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Folder]:
    """The same model with its weights in one file, of two families, and in shards."""
    root = tmp_path_factory.mktemp("models")
    made = []
    for name, family in (("llama", "llama"), ("qwen2", "qwen2"), ("sharded", "llama")):
        path, marker = save_tiny_model(root / name, family, num_layers=2, context_len=64, eos_token_id=2), root / "MARK"
        if name == "sharded":
            shard(path)
        (path / "special_tokens_map.json").write_text('{"unk_token": "<unk>", "eos_token": "</s>"}')
        code = CODE.format(marker=str(marker))
        (path / "code.py").write_text(code)
        (path / "custom_generate").mkdir()
        (path / "custom_generate" / "generate.py").write_text(code)
        made.append(Folder(path, {file.name: file.read_bytes() for file in sorted(path.glob("*.json"))}, marker))
    return made


def shard(path: Path) -> None:
    """Makes the weights in `path` two files of one index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + idx % 2}-of-00002.safetensors" for idx, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, path / file, {"format": "pt"})
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (path / "model.safetensors").unlink()


@contextlib.contextmanager
def explained(exit_code: int | None = None) -> Generator[None]:
    """Lets errors pass that are one short line, with `exit_code` where it is given."""
    try:
        yield
    except AdaDecodeError as error:
        line, code = str(error), error.exit_code
        assert line.isprintable(), line
        assert len(line) < 600, line
        assert exit_code in (None, code), code


def loaded(path: Path) -> Any:
    """The model in the folder; None when it is refused."""
    with explained(exit_code=2):
        return load_model(ModelSettings(model=str(path), dtype="float32"))[0]
    return None


@fuzzed
@given(data=st.data())
def test_a_model_with_odd_json_decodes_or_is_refused_in_one_line(models, data):
    folder = data.draw(st.sampled_from(models))
    file = data.draw(st.sampled_from(list(folder.files)))
    folder.write(file, data.draw(odd_json(folder.files[file])))
    model = loaded(folder.path)
    if model is not None:
        assert all(note.isprintable() for note in model.notes)
        with explained():  # such as logits that are not finite
            generate(model, Request([5, 6, 7], 2))
    assert not folder.marker.exists()


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Folder:
    root = tmp_path_factory.mktemp("heads")
    model = save_tiny_model(root / "model", num_layers=3)
    path = save_tiny_heads(root / "heads", model, (1, 2))
    shutil.rmtree(model)
    return Folder(path, {FACTS: (path / FACTS).read_bytes()}, root / "MARK")


@pytest.fixture(scope="module")
def decoder():
    return tiny_model(num_layers=3)


@fuzzed
@given(data=st.data())
def test_heads_with_odd_json_load_or_are_refused_in_one_line(heads, decoder, data):
    heads.write(FACTS, data.draw(odd_json(heads.files[FACTS])))
    with explained(exit_code=2):
        load_heads(heads.path, decoder)


@pytest.fixture(scope="module")
def store(heads, decoder) -> bytes:
    """A store beside `heads`, as it lies on disk."""
    outputs = [GreedyOutput([5, 6], [idx % 3, 7, 8, 9 + idx % 2]) for idx in range(20)]
    save_store(heads.path, build_nodes(outputs, 100), decoder, "outputs")
    return (heads.path / STORE).read_bytes()


@fuzzed
@given(data=st.data())
def test_heads_beside_an_odd_store_load_or_are_refused_in_one_line(heads, decoder, store, data):
    """Bytes of it replaced, cut or added, mostly in its header."""
    raw = bytearray(store)
    header_len = 8 + int.from_bytes(store[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        last = header_len if data.draw(st.booleans()) else len(raw)
        start = data.draw(st.integers(0, min(last, len(raw))))
        raw[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    heads.write(FACTS, heads.files[FACTS])
    (heads.path / STORE).write_bytes(bytes(raw))
    with explained(exit_code=2):
        found = load_heads(heads.path, decoder).store
        assert found is None or found.successor([7, 8]) is None or 0.0 < found.successor([7, 8])[1] < 1.0
    (heads.path / STORE).unlink()
