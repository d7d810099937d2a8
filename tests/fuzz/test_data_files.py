"""Data files of any bytes: their prompts are read, or one line says what is wrong; never a traceback, never for long."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st

from adadecode.cli.main import main
from adadecode.errors import TaskDataError
from adadecode.printable import UNPRINTABLE, is_unicode
from adadecode.settings import DataSettings
from adadecode.tasks import iterate_found, load_found
from tests.fuzz.cases import fuzzed

FIELDS = ["prompt", "id", "question", "answer", "task_id", "other", "a.b", "", "prompt\x1b[2J\n"]
ODD_TEXTS = ["", " \n", "\0", "\ud800", "\x1b[2J\rparity 9/9", "\u2028", "#### 7", "7", "x" * 3000, "\ufeff"]
TEXTS = st.text(max_size=12) | st.sampled_from(ODD_TEXTS)

# JSON ---------------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.integers(-3, 3) | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)
GOOD_TEXTS = TEXTS.filter(is_unicode).map("w{}".format)
GOOD_ROWS = st.fixed_dictionaries(
    {"prompt": GOOD_TEXTS}, optional={"id": st.integers(0, 99) | GOOD_TEXTS, "other": VALUES, "a.b": VALUES}
)
ROWS = GOOD_ROWS | st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=4) | VALUES
ODD_LINES = st.sampled_from(
    [
        b"",
        b" \t",
        b"[" * 100_000,
        b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"a":' * 400 + b"1" + b"}" * 400,
        b'{"prompt": "x", "id": ' + b"9" * 5000 + b"}",
        b'{"prompt": "x", "other": -1e999999}',
        b'{"prompt": "x", "prompt": 3}',
        b'{"prompt": "x",}',
        b"{'prompt': 'x'}",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800\\u0000"}',
        b"\x1f\x8b\x08\x00",
        b"PAR1",
        b"\x00{\x00}",
        b"NaN",
    ]
)
ENCODINGS = st.sampled_from(["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-32", "latin-1"])


def as_line(row: object, encoding: str) -> bytes:
    return json.dumps(row, ensure_ascii=encoding == "latin-1").encode(encoding, "surrogatepass")


GOOD_LINES = st.builds(as_line, GOOD_ROWS, st.just("utf-8"))
LINES = GOOD_LINES | st.builds(as_line, ROWS, ENCODINGS) | ODD_LINES | st.binary(max_size=40)
CHANGES = st.just([]) | st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), max_size=3)


def changed(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    """`content` with each of `changes` in place of the bytes at its position."""
    for position, new in changes:
        at = position % (len(content) + 1)
        content = content[:at] + new + content[at + max(len(new), 1) :]
    return content


# Parquet --------------------------------------------------------------------------------------------------------------

WHOLE = st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)


def texts_as(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    return st.lists(st.none() | TEXTS.filter(is_unicode), min_size=3, max_size=3).map(
        lambda values: pa.array(values, kind)
    )


def numbers_as(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    """Whole numbers as the bits of `kind`, in range or far out of it."""
    return st.lists(WHOLE, min_size=3, max_size=3).map(lambda values: pa.array(values, pa.int64()).view(kind))


def utf8_or_not(values: list[bytes]) -> pa.Array:
    """A column of strings of any bytes."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


def in_struct(column: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([column, column], ["prompt", "b"])


def in_lists(column: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, 0, 1, 3], pa.int32()), column)


def dictionary(column: pa.Array) -> pa.Array:
    return column.dictionary_encode()


TEXT_KINDS = [pa.string(), pa.large_string(), pa.string_view()]
NUMBER_KINDS = [
    *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Mars/Olympus", "+99:99")),
    *(pa.duration(unit) for unit in ("s", "ns")),
    *(pa.int64(), pa.uint64(), pa.float64(), pa.time64("us"), pa.date64()),
]
PLAIN = st.one_of(
    *map(texts_as, TEXT_KINDS),
    *map(numbers_as, NUMBER_KINDS),
    st.lists(st.binary(max_size=5), min_size=3, max_size=3).map(utf8_or_not),
    st.lists(st.none() | st.binary(max_size=5), min_size=3, max_size=3).map(
        lambda values: pa.array(values, pa.binary())
    ),
    st.lists(st.none() | st.integers(-(2**31), 2**31 - 1), min_size=3, max_size=3).map(
        lambda values: pa.array(values, pa.int32()).view(pa.date32())
    ),
    st.lists(st.none() | st.booleans(), min_size=3, max_size=3).map(lambda values: pa.array(values, pa.bool_())),
    st.lists(st.none() | st.decimals(-99, 99, places=2), min_size=3, max_size=3).map(
        lambda values: pa.array(values, pa.decimal128(6, 2))
    ),
    st.just(pa.nulls(3)),
    st.lists(st.binary(min_size=16, max_size=16), min_size=3, max_size=3).map(
        lambda values: pa.ExtensionArray.from_storage(pa.uuid(), pa.array(values, pa.binary(16)))
    ),
    texts_as(pa.string()).map(
        lambda column: pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "kind", "maker"), column)
    ),
)
COLUMNS = st.recursive(PLAIN, lambda inner: st.builds(in_struct, inner) | st.builds(in_lists, inner), max_leaves=3)
COLUMNS |= texts_as(pa.string()).map(dictionary)
GOOD_COLUMNS = st.lists(GOOD_TEXTS, min_size=3, max_size=3).map(lambda values: pa.array(values, pa.string()))
NAMES = st.sampled_from(FIELDS[:-1]) | st.sampled_from(["prompt", "id"])
FORMS = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "zstd", "gzip"]),
        "row_group_size": st.sampled_from([1, 2, 100]),
        "use_dictionary": st.booleans(),
        "store_schema": st.booleans(),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "write_page_checksum": st.booleans(),
    }
)

# The property ---------------------------------------------------------------------------------------------------------

TASKS = st.sampled_from(["jsonl"] * 8 + ["gsm8k", "humaneval", "mbpp", "xsum", "cnn_dm", "spec_bench"])
PROMPT_FIELDS = st.sampled_from(["prompt"] * 9 + ["other", "a.b", "id"])


def check(path: Path, task: str, prompt_field: str) -> None:
    """`path` gives prompts a model can be given, or one line says why not; `plan` says the same as the loader."""
    data = DataSettings(data_file=str(path), prompt_field=prompt_field if task == "jsonl" else "prompt")
    try:
        found = load_found(task, data)
    except TaskDataError:
        found = None
    try:
        to_train_on = list(iterate_found(task, data))
    except TaskDataError:
        to_train_on = []
    assert found is None or list(map(str, to_train_on)) == list(map(str, found))
    examples = [one for one in found or () if not isinstance(one, TaskDataError)]
    assert len({example.sample_id for example in examples}) == len(examples)
    for example in examples:
        assert all(
            text.strip() and is_unicode(text) for text in (example.prompt, example.chat_prompt, example.sample_id)
        )

    flags = ["--task", task, "--data-file", str(path), "--prompt-field", data.prompt_field]
    result = CliRunner().invoke(main, ["plan", *flags])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    is_usable = found is not None and len(examples) == len(found)
    assert result.exit_code == (0 if is_usable else 2), result.output
    if not is_usable:
        (line,) = result.stderr.splitlines()
        assert line.startswith("adadecode: ")
        assert path.name in line
        assert not UNPRINTABLE.search(line)
        assert len(line) < 1000


@fuzzed
@given(
    name=st.sampled_from(
        ["rows.jsonl"] * 4 + ["rows.JSONL", "rows.jsonl.gz", "rows.jsonl.gz", "rows.parquet", "rows.txt"]
    ),
    lines=st.lists(GOOD_LINES, max_size=6) | st.lists(LINES, max_size=6),
    end=st.sampled_from([b"\n"] * 6 + [b"\r\n", b"\r", b"\n\xef\xbb\xbf"]),
    is_compressed=st.booleans(),
    changes=CHANGES,
    task=TASKS,
    prompt_field=PROMPT_FIELDS,
)
def test_any_lines_of_json_are_read_or_refused_in_one_line(
    tmp_path_factory, name, lines, end, is_compressed, changes, task, prompt_field
):
    content = end.join(lines)
    if is_compressed and name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(changed(content, changes))
    check(path, task, prompt_field)


@fuzzed
@given(
    prompts=st.none() | GOOD_COLUMNS,
    columns=st.lists(st.tuples(NAMES, COLUMNS), max_size=3),
    num_rows=st.sampled_from([0, 1, 3, 3, 3]),
    form=FORMS,
    changes=CHANGES,
    task=TASKS,
    prompt_field=PROMPT_FIELDS,
)
def test_any_parquet_table_is_read_or_refused_in_one_line(
    tmp_path_factory, prompts, columns, num_rows, form, changes, task, prompt_field
):
    path = tmp_path_factory.getbasetemp() / "table.parquet"
    if prompts is not None:
        columns = [("prompt", prompts), *((name, column) for name, column in columns if name != "prompt")]
    table = pa.table([column for _, column in columns], [name for name, _ in columns]).slice(0, num_rows)
    try:
        pq.write_table(table, path, **form)
    except (pa.ArrowException, OverflowError):
        assume(False)
    path.write_bytes(changed(path.read_bytes(), changes))
    check(path, task, prompt_field)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
@fuzzed
@given(content=st.binary(max_size=200), changes=CHANGES)
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, name, content, changes):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(changed(content, changes))
    check(path, "jsonl", "prompt")
