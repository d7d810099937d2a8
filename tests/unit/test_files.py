"""Files that are there whole or not at all, and hashes that stay what they were."""

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from adadecode.errors import EXIT_USAGE, RunFolderError
from adadecode.files import (
    from_json,
    is_there,
    make_folder,
    make_lasting,
    short_hash,
    stored_in,
    whole_file,
    write_whole,
)
from adadecode.records import Example
from adadecode.runs.fingerprint import hash_folder
from adadecode.runs.plan import make_plan, plan_hash, plan_table
from adadecode.settings import EvalConfig, TrainConfig
from adadecode.training.outputs import Part
from adadecode.training.prompts import hash_ids
from adadecode.training.train import fingerprint_of
from adadecode.tuning.subject import hash_tokenizer


def test_a_short_hash_is_16_digits_of_the_sha256_of_its_parts_joined():
    assert short_hash("abc") == hashlib.sha256(b"abc").hexdigest()[:16] == "ba7816bf8f01cfea"
    assert short_hash(b"a", "b", b"c") == short_hash("abc")
    assert short_hash("\u00e9") == short_hash(b"\xc3\xa9")


@pytest.mark.parametrize("content", [b"[" * 100_000, '{"a":' * 100_000, b"\xff", "{", "1" * 5000])
def test_what_is_no_json_or_nested_too_deep_is_a_value_error(content):
    with pytest.raises(ValueError, match=r".+"):
        from_json(content)


def test_there_is_nothing_under_a_name_too_long(tmp_path):
    assert [is_there(tmp_path / name) for name in ("", "none", "x" * 300)] == [True, False, False]


def test_stored_hashes_are_those_of_version_0_1_0(tmp_path):
    """Written down from it: a run, its heads and a training that were begun then are found again."""
    config = EvalConfig(task="gsm8k", limit=7, dtype="float32", shard_size=4, decode={"policy": "paper"})
    assert config.fingerprint(model_files="0123456789abcdef") == "34497514bfd4692b"
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.safetensors").write_bytes(bytes(range(256)))
    (tmp_path / "left-out.md").write_text("notes")
    assert hash_folder(tmp_path) == "a7140b1c478312ed"
    assert hash_ids([[1, 2, 3], [], [2**31 - 1]]) == "ac0321dc1a84129e"
    plan = plan_table(make_plan({"toy": [Example("a", "p", "c", "1")]}, 2))
    assert (plan_hash(plan), plan["prompt_hash"].to_pylist()) == ("7fe08126136a32da", ["a84297a14d41fe6f"])
    assert (
        hash_tokenizer(SimpleNamespace(chat_template="{{x}}", get_vocab=lambda: {"b": 1, "a": 0})) == "bd6790fcf1337a3c"
    )
    model: Any = SimpleNamespace(dtype="torch.float32", model_hash="0123456789abcdef")
    parts = [Part(0, num_outputs=2, num_tokens=3, content_hash="fedcba9876543210")]
    assert fingerprint_of(model, model, (1, 2), parts, TrainConfig(task="jsonl")) == "9a56e4111574a658"


def test_a_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path):
    write_whole(tmp_path / "a.txt", "caf\u00e9\n")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xc3\xa9\n"
    write_whole(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("many_writers", [True, False])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, many_writers):
    write_whole(tmp_path / "a", b"old")

    def fail_in_the_middle() -> None:
        with whole_file(tmp_path / "a", many_writers=many_writers) as unfinished:
            unfinished.write_bytes(b"half")
            assert (tmp_path / "a").read_bytes() == b"old"
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail_in_the_middle()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_many_writers_have_names_of_their_own_and_the_last_to_end_wins(tmp_path):
    with whole_file(tmp_path / "a", many_writers=True) as first:
        with whole_file(tmp_path / "a", many_writers=True) as second:
            first.write_bytes(b"first")
            second.write_bytes(b"second")
        assert (tmp_path / "a").read_bytes() == b"second"
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_writer_left_is_overwritten_by_the_next(tmp_path):
    with whole_file(tmp_path / "a") as unfinished:
        unfinished.write_bytes(b"of the next")
    unfinished.write_bytes(b"half of a killed one")
    with whole_file(tmp_path / "a") as again:
        assert again == unfinished
        again.write_bytes(b"of the one after it")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_file_stored_for_another_is_hidden_and_gone_when_it_was_not_renamed(tmp_path):
    with stored_in(tmp_path / "below", "a", b"content") as temporary:
        assert temporary.parent == tmp_path / "below"
        assert temporary.name.startswith(".a.")
        assert temporary.read_bytes() == b"content"
    assert list((tmp_path / "below").iterdir()) == []


def test_every_folder_that_is_made_is_on_disk_with_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("adadecode.files.sync_folder", synced.append)
    make_lasting(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert set(synced) == {tmp_path, tmp_path / "a"}
    make_lasting(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_a_folder_is_made_with_those_above_it_and_may_be_there(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunFolderError, match=r"^--out '.*file/out' cannot be made a folder \(Not a directory\): choose another"
    ) as caught:
        make_folder(tmp_path / "file" / "out")
    assert caught.value.exit_code == EXIT_USAGE
    with pytest.raises(RunFolderError, match=r"^--outputs '.*file' cannot be made a folder \(File exists\)"):
        make_folder(tmp_path / "file", "--outputs")
