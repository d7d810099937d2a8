"""Loading examples from data files: every format, every mistake a file can hold, and the hub out of reach."""

import gzip
import itertools
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from adadecode.errors import PromptError, TaskDataError, UsageError
from adadecode.records import Example
from adadecode.settings import DataSettings
from adadecode.tasks import iterate_found, load_examples

ROWS = [{"prompt": "Once upon"}, {"prompt": "a time"}, {"prompt": " there was\n"}]


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load_jsonl(path: Path, **settings: object) -> list[Example]:
    return load_examples("jsonl", DataSettings.model_validate({"data_file": str(path), **settings}))


def load_jsonl_error(path: Path, **settings: str) -> str:
    """The one line that loading `path` as the jsonl task fails with."""
    with pytest.raises(TaskDataError) as caught:
        load_jsonl(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def run_python(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter that may not reach the hub."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet", "ROWS.JSONL"])
def test_every_format_gives_the_same_examples(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    else:
        write_jsonl(path, *ROWS)
    examples = load_jsonl(path)
    assert [example.sample_id for example in examples] == ["00000", "00001", "00002"]
    assert [example.prompt for example in examples] == ["Once upon", "a time", " there was\n"]
    assert [example.chat_prompt for example in examples] == [example.prompt for example in examples]
    assert {example.reference for example in examples} == {None}


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "first"}\nnot json\n')
    assert [example.prompt for example in load_jsonl(path, limit=1)] == ["first"]


def test_blank_lines_are_skipped_but_counted_in_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "first"}\n\n   \n{"prompt": "second"}\n{"prompt": 3}\n')
    assert [example.sample_id for example in load_jsonl(path, limit=2)] == ["00000", "00001"]
    assert "rows.jsonl line 5" in load_jsonl_error(path)


def test_line_separators_inside_a_json_text_do_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "one\u2028two\u0085three"}\n', encoding="utf-8")
    assert load_jsonl(path)[0].prompt == "one\u2028two\u0085three"


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "first"}\n', encoding="utf-8-sig")
    assert load_jsonl(path)[0].prompt == "first"


def test_prompt_field_names_the_prompt_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", {"instruction": "Say hello", "prompt": "unused"})
    assert load_jsonl(path, prompt_field="instruction")[0].prompt == "Say hello"


def test_ids_become_sample_ids_and_rows_without_one_are_numbered(tmp_path: Path) -> None:
    rows = [{"id": "a/1", "prompt": "x"}, {"id": 7, "prompt": "y"}, {"id": None, "prompt": "z"}, {"prompt": "w"}]
    path = write_jsonl(tmp_path / "rows.jsonl", *rows)
    sample_ids = [example.sample_id for example in load_jsonl(path)]
    assert sample_ids == ["a/1", "7", "00002", "00003"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = load_jsonl_error(tmp_path / "absent.jsonl")
    assert "absent.jsonl" in message
    assert "no such file" in message
    assert "--data-file" in message


def test_an_unknown_suffix_is_named_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt\nhello\n")
    message = load_jsonl_error(path)
    assert "unknown suffix '.csv'" in message
    assert ".jsonl, .jsonl.gz, .parquet" in message


@pytest.mark.parametrize("line", [b'{"prompt": "cut off', b'{"prompt": "\xff'])
def test_a_malformed_line_is_named_by_its_number(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    message = load_jsonl_error(path)
    assert "rows.jsonl line 2" in message
    assert "prompt" in message
    assert "not JSON" in message
    assert "one JSON object per line" in message


def test_a_prompt_of_a_line_that_is_not_utf8_is_that_rows_error_and_other_fields_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "one", "note": "\xff"}\n{"prompt": "\xff"}\n{"prompt": "three"}\n')
    one, error, three = iterate_found("jsonl", DataSettings(data_file=str(path)))
    assert isinstance(one, Example)
    assert isinstance(three, Example)
    assert (one.prompt, three.prompt) == ("one", "three")
    assert isinstance(error, PromptError)
    assert "rows.jsonl line 2: field 'prompt' is '\\udcff', not valid Unicode" in str(error)
    assert load_jsonl_error(path) == str(error), "an evaluation has no sample for it"


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    message = load_jsonl_error(write_jsonl(tmp_path / "rows.jsonl", {"prompt": "fine"}, ["a", "list"]))
    assert "rows.jsonl line 2: ['a', 'list'] is not an object" in message
    assert "one JSON object per line" in message


def test_a_missing_field_is_named_with_the_fields_that_exist(tmp_path: Path) -> None:
    message = load_jsonl_error(write_jsonl(tmp_path / "rows.jsonl", {"prompt": "fine"}, {"text": "x", "lang": "en"}))
    assert "rows.jsonl line 2: no field 'prompt' among its fields (text, lang)" in message
    assert "--prompt-field" in message


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (None, "None, not text"),
        (42, "42, not text"),
        ({"a": 1}, "{'a': 1}, not text"),
        ("", "'', which holds no text"),
        (" \n", "' \\n', which holds no text"),
        ("\ud800", "'\\ud800', not valid Unicode"),
    ],
)
def test_a_prompt_that_is_no_text_is_shown_with_its_line(value: object, complaint: str, tmp_path: Path) -> None:
    message = load_jsonl_error(write_jsonl(tmp_path / "rows.jsonl", {"prompt": "fine"}, {"prompt": value}))
    assert f"rows.jsonl line 2: field 'prompt' is {complaint}" in message
    assert "--prompt-field" in message


def test_a_long_value_is_shown_shortened(tmp_path: Path) -> None:
    message = load_jsonl_error(write_jsonl(tmp_path / "rows.jsonl", {"prompt": {"x": "x" * 5000}}))
    assert "xxx..., not text" in message
    assert len(message) < 400 + len(str(tmp_path))


def test_a_missing_field_of_a_parquet_file_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), path)
    assert "rows.parquet row 0: no field 'prompt' among its fields (text)" in load_jsonl_error(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_data_set_is_an_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    message = load_jsonl_error(path)
    assert "rows.jsonl: the data set is empty" in message
    assert "--data-file" in message


def test_an_id_used_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}, {"id": "a", "prompt": "z"}]
    message = load_jsonl_error(write_jsonl(tmp_path / "rows.jsonl", *rows))
    assert "rows.jsonl line 3: id 'a' is taken by" in message
    assert "rows.jsonl line 1" in message
    assert "leave them out" in message


@pytest.mark.parametrize("value", [True, 1.5, ["a"], ""])
def test_an_unusable_id_is_named(value: object, tmp_path: Path) -> None:
    message = load_jsonl_error(write_jsonl(tmp_path / "rows.jsonl", {"id": value, "prompt": "x"}))
    assert "rows.jsonl line 1" in message
    assert repr(value) in message
    assert "distinct texts or whole numbers" in message


CUT_GZIP = gzip.compress(b'{"prompt": "x"}\n' * 1000, mtime=0)[:-20]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl.gz", b"plain text"),
        ("rows.jsonl.gz", CUT_GZIP),
        ("rows.parquet", b"text"),
        ("rows.parquet", b"PAR1cut"),
    ],
)
def test_a_damaged_file_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = load_jsonl_error(path)
    assert name in message
    assert message.endswith("check the file, or copy it again")


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("rows.jsonl", CUT_GZIP, "it is compressed with gzip: name it .jsonl.gz"),
        ("rows.jsonl", b"PAR1\n", "it is a Parquet file: name it .parquet"),
        ("rows.jsonl.gz", b'{"prompt": "x"}\n', "it is not compressed: name it .jsonl"),
        ("rows.parquet", b'{"prompt": "x"}\n', "it is not compressed: name it .jsonl"),
        ("rows.jsonl", '{"prompt": "x"}\n'.encode("utf-16"), "it is UTF-16: write it as UTF-8"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\n", "fetch the file with `git lfs pull`"),
        ("rows.jsonl", b"PK\x03\x04rest", "it is a zip archive: unpack it"),
    ],
)
def test_a_file_that_is_something_else_than_its_name_says_is_told_what_it_is(
    name: str, content: bytes, advice: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = load_jsonl_error(path)
    assert name in message
    assert message.endswith(advice)


def test_a_folder_says_that_it_is_one_and_which_files_to_give(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    assert f"{folder}: a folder, without .jsonl, .jsonl.gz, .parquet files in it; give one" in load_jsonl_error(folder)
    for name in ("b.parquet", "a.jsonl", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert f"{folder}: a folder; give one of its files, such as a.jsonl (2 of them can be read)" in (
        load_jsonl_error(folder)
    )


def test_what_is_no_regular_file_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    assert "rows.jsonl: no regular file; copy what it gives to a file" in load_jsonl_error(tmp_path / "rows.jsonl")


def utf8_or_not(*texts: bytes) -> pyarrow.Array:
    """A column of strings, whatever their bytes are."""
    offsets = pyarrow.py_buffer(struct.pack(f"<{len(texts) + 1}i", *itertools.accumulate(map(len, texts), initial=0)))
    return pyarrow.Array.from_buffers(pyarrow.string(), len(texts), [None, offsets, pyarrow.py_buffer(b"".join(texts))])


FAR = [10**15, -(10**15)]  # in milliseconds, past what Python's dates hold
OTHER_COLUMNS = {
    "dates past Python's": pyarrow.array(FAR, pyarrow.timestamp("ms")),
    "an unknown time zone": pyarrow.array([0, 1], pyarrow.timestamp("us", "Mars/Olympus")),
    "no UTF-8": utf8_or_not(b"\xff\xfe", b"fine"),
    "nested": pyarrow.array([{"prompt": FAR[0]}, None], pyarrow.struct([("prompt", pyarrow.timestamp("ms"))])),
    "lists of it": pyarrow.array([FAR, []], pyarrow.list_(pyarrow.timestamp("ms"))),
}


@pytest.mark.parametrize("column", OTHER_COLUMNS.values(), ids=OTHER_COLUMNS)
def test_what_other_columns_of_a_parquet_file_hold_does_not_matter(column: pyarrow.Array, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    prompts = pyarrow.array(["one", "two"])
    pyarrow.parquet.write_table(pyarrow.table([column, prompts, column], ["other", "prompt", "other"]), path)
    assert [example.prompt for example in load_jsonl(path)] == ["one", "two"]


def test_a_parquet_column_with_a_dot_in_its_name_is_no_nested_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    nested = pyarrow.array([{"b": "nested"}], pyarrow.struct([("b", pyarrow.string())]))
    pyarrow.parquet.write_table(pyarrow.table([nested, pyarrow.array(["flat"])], ["a", "a.b"]), path)
    assert load_jsonl(path, prompt_field="a.b")[0].prompt == "flat"


@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("prompt", utf8_or_not(b"fine", b"\xff"), "'utf-8' codec can't decode byte 0xff"),
        ("id", pyarrow.array([0, FAR[0]], pyarrow.timestamp("ms")), "date value out of range"),
    ],
)
def test_a_value_that_is_needed_and_cannot_be_read_is_named_by_its_row(
    name: str, column: pyarrow.Array, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    columns = {"prompt": pyarrow.array(["one", "two"])} | {name: column}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    _, error = iterate_found("jsonl", DataSettings(data_file=str(path)))
    assert isinstance(error, PromptError), "others may be used"
    assert f"rows.parquet row 1: column {name!r} cannot be read ({reason}" in str(error)
    load_jsonl_error(path)


def test_a_column_that_is_needed_and_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table([pyarrow.array(["a"])] * 2, ["prompt", "prompt"]), path)
    assert "rows.parquet: 2 columns are called 'prompt'; keep one of them" in load_jsonl_error(path)


def test_a_value_nested_too_deep_to_be_quoted_is_still_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("[" * 900 + "]" * 900 + "\n")
    assert "rows.jsonl line 1: " in load_jsonl_error(path)


def test_to_train_on_a_row_without_text_comes_as_the_error_that_names_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", {"prompt": "one"}, {"prompt": None}, {"prompt": "three"})
    one, error, three = iterate_found("jsonl", DataSettings(data_file=str(path)))
    assert (one.prompt, three.prompt) == ("one", "three")
    assert "rows.jsonl line 2: field 'prompt' is None, not text" in str(error)


def test_the_jsonl_task_needs_a_data_file() -> None:
    with pytest.raises(UsageError, match=r"--data-file is missing: task jsonl reads .* \.parquet file"):
        load_examples("jsonl", DataSettings())


def test_a_hub_out_of_reach_suggests_a_data_file(tmp_path: Path) -> None:
    code = """
from adadecode.settings import DataSettings
from adadecode.tasks import load_examples
load_examples('gsm8k', DataSettings())
"""
    last_line = run_python(code, tmp_path).stderr.splitlines()[-1]
    assert "TaskDataError: openai/gsm8k/main/test: cannot be loaded from the Hugging Face hub" in last_line
    assert "--data-file" in last_line


def test_data_files_load_without_the_heavy_packages(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", *ROWS)
    code = f"""
import sys
from adadecode.settings import DataSettings
from adadecode.tasks import load_examples
load_examples("jsonl", DataSettings(data_file={str(path)!r}))
load_examples("demo-math", DataSettings())
print("loaded:", *{{"datasets", "pyarrow", "torch", "transformers"}} & set(sys.modules))
"""
    finished = run_python(code, tmp_path)
    assert (finished.stdout, finished.stderr) == ("loaded:\n", "")


def test_the_first_row_that_cannot_be_used_is_told_before_any_other_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": 3}\nnot json\n')
    assert "rows.jsonl line 1: field 'prompt' is 3, not text" in load_jsonl_error(path)
