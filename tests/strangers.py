"""Parquet files that no run has written: foreign, cut, encrypted, hostile, or far larger than they look."""

import base64
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe


class _Payload:
    """What makes a file in who unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.mark,)


def foreign(file: Path) -> None:
    """A table of other columns."""
    pq.write_table(pa.table({"question": ["why"], "answer": [42]}), file)


def foreign_types(file: Path) -> None:
    """Columns of the right names that hold other things, and one twice."""
    names = ["task", "sample_id", "shard", "prompt_hash", "run_id", "task"]
    pq.write_table(pa.table([pa.array([{"a": [1]}])] * len(names), names=names), file)


def truncated(file: Path) -> None:
    """A file whose end is cut off."""
    foreign(file)
    file.write_bytes(file.read_bytes()[:-20])


def cut_inside(file: Path) -> None:
    """A file whose footer is whole and whose pages are not."""
    pq.write_table(pa.table({"x": np.arange(10_000)}), file, use_dictionary=False)
    content = file.read_bytes()
    file.write_bytes(content[:1000] + b"\0" * 50_000 + content[51_000:])


def encrypted(file: Path) -> None:
    """A file whose footer and columns are encrypted."""

    class Keys(pe.KmsClient):  # pyright: ignore[reportUntypedBaseClass]
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
            return base64.b64encode(key_bytes).decode()

        def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
            return base64.b64decode(wrapped_key)

    factory = pe.CryptoFactory(lambda _: Keys())
    settings = pe.EncryptionConfiguration(footer_key="footer", column_keys={"key": ["answer"]})
    table = pa.table({"question": ["why"], "answer": [42]})
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), settings)
    with pq.ParquetWriter(file, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def hostile_metadata(file: Path) -> None:
    """Pickles where an extension type would be, escape codes and lines in names and texts, bytes that are no text."""
    payload = pickle.dumps(_Payload(file.with_name("executed")))
    extension = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    fields = [pa.field("x", pa.int64(), metadata=extension), pa.field("\x1b[2Jy\nz\u202e", pa.string())]
    facts = {b"fingerprint": b"\xff\x1b[31m\n", b"run_id": payload, b"pandas": b"{", b"worker": b"\xff" * 1000}
    columns = [pa.array([1]), pa.array(["\x1b]0;title\x07\n"])]
    pq.write_table(pa.table(columns, schema=pa.schema(fields, facts)), file)


def deeply_nested(file: Path) -> None:
    """A column of structs within structs."""
    nested: pa.DataType = pa.int32()
    for _ in range(1000):
        nested = pa.struct([("a", nested)])
    pq.write_table(pa.table([pa.nulls(1, nested)], names=["x"]), file, store_schema=False)


def bomb_of_rows(file: Path) -> None:
    """One number 140,000,000 times: 1.1 GB from some kB."""
    part = pa.table({"x": np.zeros(20_000_000, np.int64)})
    with pq.ParquetWriter(file, part.schema, compression="zstd") as writer:
        for _ in range(7):
            writer.write_table(part, row_group_size=part.num_rows)


def bomb_of_texts(file: Path) -> None:
    """One text of 5 MB 300,000 times: 1.5 TB from some kB."""
    text = pa.DictionaryArray.from_arrays(np.zeros(300_000, np.int32), ["a" * 5_000_000])
    pq.write_table(pa.table({"x": text}), file, compression="zstd", dictionary_pagesize_limit=2**30)


def bomb_of_lists(file: Path) -> None:
    """Lists of 100,000,000 zeros."""
    zeros = pa.array(np.zeros(25_000_000, np.int32))
    part = pa.table({"x": pa.ListArray.from_arrays([0, len(zeros)], zeros)})
    with pq.ParquetWriter(file, part.schema, compression="zstd") as writer:
        for _ in range(4):
            writer.write_table(part)


def bomb_of_a_page(file: Path) -> None:
    """Texts without a dictionary, of 1.2 GB of one letter."""
    part = pa.table({"x": ["a" * 95_000_000]})
    with pq.ParquetWriter(
        file, part.schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:
        for _ in range(13):
            writer.write_table(part)


def lying_bomb(file: Path) -> None:
    """The bomb of rows, whose footer says that it has hardly any."""
    pq.write_table(pa.table({"x": np.zeros(20_000_000, np.int64)}), file, compression="zstd", row_group_size=2**30)
    content = file.read_bytes()
    footer_len = int.from_bytes(content[-8:-4], "little")
    footer, true, said = content[-8 - footer_len :], _varint(20_000_000, 4), _varint(10, 4)
    assert true in footer
    file.write_bytes(content[: -8 - footer_len] + footer.replace(true, said))


def _varint(number: int, num_bytes: int) -> bytes:
    """`number` as Thrift's compact protocol writes it, in `num_bytes` bytes, more than it needs where they are."""
    zigzag = 2 * number
    parts = [(zigzag >> (7 * idx)) & 0x7F for idx in range(num_bytes)]
    assert zigzag >> (7 * num_bytes) == 0
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])


def long_texts_in_lists(file: Path) -> None:
    """A list in which one text of 100 kB stands 30,000 times: 3 GB from some hundred bytes."""
    texts = pa.DictionaryArray.from_arrays(np.zeros(30_000, np.int32), ["1" * 100_000])
    lists = pa.ListArray.from_arrays([0, len(texts)], texts)
    pq.write_table(pa.table({"prompt_token_ids": lists}), file, compression="zstd", dictionary_pagesize_limit=2**30)


def many_groups(file: Path) -> None:
    """A row in each of 300 groups, of 50 columns."""
    part = pa.table({f"x{idx}": [1] for idx in range(50)})
    with pq.ParquetWriter(file, part.schema) as writer:
        for _ in range(300):
            writer.write_table(part)


def bomb_of_drafts(file: Path) -> None:
    """A list of 20,000,000 rejected drafts, all parts of which are 0."""
    zeros = pa.array(np.zeros(20_000_000, np.int32))
    drafts = pa.StructArray.from_arrays([zeros] * 4, names=["round_idx", "position", "token_id", "exit"])
    lists = pa.ListArray.from_arrays([0, len(zeros)], drafts)
    pq.write_table(pa.table({"rejected": lists}), file, compression="zstd")


def bomb_of_fixed_lengths(file: Path) -> None:
    """Values of 100 kB each, of a type of that length, 25,000 times one of them: 2.5 GB from 8 kB."""
    part = pa.table({"x": pa.array([b"a" * 100_000] * 500, pa.binary(100_000))})
    with pq.ParquetWriter(file, part.schema, compression="zstd") as writer:
        for _ in range(50):
            writer.write_table(part)


def bomb_of_nesting(file: Path) -> None:
    """One number in lists within lists, 30 deep, 12,000,000 times: 124 bytes each of where lists begin."""
    nested: pa.Array = pa.array(np.zeros(2_000_000, np.int32))
    for _ in range(30):
        nested = pa.ListArray.from_arrays(np.arange(len(nested) + 1, dtype=np.int32), nested)
    part = pa.table({"x": nested})
    with pq.ParquetWriter(file, part.schema, compression="zstd") as writer:
        for _ in range(6):
            writer.write_table(part)


SMALL = (
    *(foreign, foreign_types, truncated, cut_inside, encrypted, hostile_metadata, deeply_nested),
    long_texts_in_lists,
)
BOMBS = (bomb_of_rows, bomb_of_texts)
SLOW_BOMBS = (
    *(bomb_of_lists, bomb_of_a_page, lying_bomb),
    *(bomb_of_drafts, bomb_of_fixed_lengths, bomb_of_nesting, many_groups),
)
