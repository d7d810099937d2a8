"""Conversations in a data file: checked, and put through the chat template as they stand."""

import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from adadecode.errors import PromptError, TaskDataError
from adadecode.records import Example, Message
from adadecode.runs.folder import read_samples
from adadecode.settings import DataSettings
from adadecode.tasks import load_examples
from adadecode.tasks.encode import encode_prompt, usable_ids
from tests.unit.tasks.conftest import TEMPLATE
from tests.unit.tasks.test_encode import ids
from tests.unit.tasks.test_tasks import write_jsonl

TALK = [
    {"role": "system", "content": "please"},
    {"role": "user", "content": "add two"},
    {"role": "assistant", "content": "two and two"},
    {"role": "user", "content": "and two"},
]


def load(path, **settings: object) -> list[Example]:
    return load_examples("jsonl", DataSettings.model_validate({"data_file": str(path), **settings}))


def test_a_conversation_keeps_its_messages_and_has_no_plain_prompt(tmp_path):
    (example,) = load(write_jsonl(tmp_path / "p.jsonl", {"messages": TALK}))
    assert [{"role": one.role, "content": one.content} for one in example.messages] == TALK
    assert (example.prompt, example.chat_prompt) == ("", "and two")


def test_the_template_gets_the_messages_as_they_stand(tmp_path, tokenizer: PreTrainedTokenizerFast):
    (example,) = load(write_jsonl(tmp_path / "p.jsonl", {"messages": TALK}))
    with pytest.raises(
        PromptError, match="the prompt is a conversation, and the model's tokenizer has no chat template"
    ):
        usable_ids(tokenizer, example, 64, 64)
    tokenizer.chat_template = TEMPLATE.replace(
        "[{{ m['role'] }}]", "{{ '[user]' if m['role'] == 'user' else '[model]' }}"
    )
    told = "<bos> [model] please [user] add two [model] two and two [user] and two [model]"
    assert encode_prompt(tokenizer, example) == ids(told)


def test_a_conversation_of_one_message_is_a_prompt_like_any_other(tmp_path):
    file = write_jsonl(tmp_path / "p.jsonl", {"messages": TALK[1:2]}, {"prompt": "add two"})
    first, second = load(file)
    assert (
        (first.prompt, first.messages) == (second.prompt, second.messages) == ("add two", (Message("user", "add two"),))
    )


def test_a_prompt_column_wins_unless_another_is_named(tmp_path):
    file = write_jsonl(tmp_path / "p.jsonl", {"prompt": "first", "messages": TALK, "chat": TALK[:2], "text": "t"})
    assert load(file)[0].prompt == "first"
    assert load(file, prompt_field="messages")[0].chat_prompt == "and two"
    assert load(file, prompt_field="chat")[0].messages == (Message("system", "please"), Message("user", "add two"))
    assert load(file, prompt_field="text")[0].prompt == "t"


def test_parquet_holds_conversations_too(tmp_path):
    file = tmp_path / "p.parquet"
    with_nulls = [[{**message, "name": None} for message in TALK]]
    pyarrow.parquet.write_table(pyarrow.table({"messages": with_nulls}), file)
    assert load(file) == load(write_jsonl(tmp_path / "p.jsonl", {"messages": TALK}))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "field 'messages' is [], no list of messages; messages are objects with a `role` (system, developer, "),
        ("hello", None),
        (7, "field 'messages' is 7, not text; every row needs a prompt or `messages`"),
        (["hello"], "message 0 of 'messages' is 'hello', not an object; "),
        ([{"role": "user"}], "message 0 of 'messages' has the content None, no text; "),
        ([{"role": "user", "content": " "}], "message 0 of 'messages' has the content ' ', no text; "),
        ([{"role": "user", "content": [{"type": "text"}]}], "has the content [{'type': 'text'}], no text; "),
        ([{"content": "x"}], "message 0 of 'messages' has the role None; messages are"),
        (
            [{"role": "User", "content": "x"}],
            "message 0 of 'messages' has the role 'User'; did you mean user? messages are",
        ),
        ([{"role": ["user"], "content": "x"}], "message 0 of 'messages' has the role ['user']; messages are"),
        (
            [*TALK, {"role": "assistant", "content": "x"}],
            "the last message of 'messages' is of role 'assistant', not `user`",
        ),
        (
            [{"role": "user", "content": "x", "tool_calls": [1]}],
            "message 0 of 'messages' has 'tool_calls' beside its role",
        ),
        ([{"role": "user", "content": "\ud800"}], "message 0 of 'messages' has the content '\\ud800', no text; "),
    ],
)
def test_a_malformed_conversation_is_one_line(messages, said, tmp_path):
    file = write_jsonl(tmp_path / "p.jsonl", {"messages": messages})
    if said is None:  # a column of that name that holds texts
        assert load(file)[0].prompt == messages
        return
    with pytest.raises(TaskDataError) as caught:
        load(file)
    assert f"p.jsonl line 1: {said}" in str(caught.value) or said in str(caught.value)
    assert str(caught.value).startswith(f"{file} line 1: ")
    assert "\n" not in str(caught.value)


def test_a_system_prompt_goes_before_messages_that_have_none(tmp_path):
    file = write_jsonl(tmp_path / "p.jsonl", {"messages": TALK[1:]}, {"messages": TALK})
    (first,) = load(file, system_prompt="Be brief.", limit=1)
    assert [message.role for message in first.messages] == ["system", "user", "assistant", "user"]
    assert first.prompt == ""
    with pytest.raises(TaskDataError, match="line 2: its messages have a system message of their own; drop --system"):
        load(file, system_prompt="Be brief.")


def test_an_evaluation_decodes_conversations(cli, tiny, chat_model, tmp_path):
    talk = [{"role": role, "content": f"w{n} w10"} for n, role in enumerate(("user", "assistant", "user"), start=5)]
    file = write_jsonl(tmp_path / "p.jsonl", {"messages": talk}, {"messages": talk[:1]})
    flags = tiny.flags(data_file=file, model=chat_model)
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 2/2" in result.stdout
    lengths = {row["sample_id"]: row["prompt_len"] for row in read_samples(tmp_path / "run").to_pylist()}
    assert lengths == {"00000": 1 + 3 * 3 + 1, "00001": 1 + 3 + 1}


def test_a_model_without_a_template_says_so_in_one_line(cli, tiny, tmp_path):
    file = write_jsonl(tmp_path / "p.jsonl", {"messages": TALK})
    result = cli("eval", "--local", *tiny.flags(data_file=file), "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "the prompt is a conversation, and the model's tokenizer has no chat template" in result.stderr
