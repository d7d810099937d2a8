"""What stands before a sample's own prompt: worked examples and a system prompt; and the order of samples."""

import json
import sys
from types import SimpleNamespace

import pytest

from adadecode.errors import PromptError, TaskDataError, UsageError
from adadecode.records import Message
from adadecode.runs.folder import read_run, read_samples
from adadecode.settings import DataSettings
from adadecode.tasks import find_task, iterate_found, load_examples, load_found
from tests.unit.tasks.test_paper_tasks import CNN_ROW, MBPP_ROW, XSUM_ROW
from tests.unit.tasks.test_tasks import GSM8K_ROW, write_jsonl

SHOTS = [
    {"question": f"What is {n}+{n}?", "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"} for n in (1, 2, 3)
]


def settings(**given: object) -> DataSettings:
    return DataSettings.model_validate({name: str(v) if name.endswith("file") else v for name, v in given.items()})


@pytest.fixture
def rows(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", GSM8K_ROW)


@pytest.fixture
def shots(tmp_path):
    return write_jsonl(tmp_path / "shots.jsonl", *SHOTS)


def test_gsm8k_shots_are_questions_with_their_whole_answers_before_the_question(rows, shots):
    (example,) = load_examples("gsm8k", settings(data_file=rows, num_shots=2, shots_file=shots))
    assert example.prompt == (
        "Question: What is 1+1?\nAnswer: 1+1=<<1+1=2>>2\n#### 2\n\n"
        "Question: What is 2+2?\nAnswer: 2+2=<<2+2=4>>4\n#### 4\n\n"
        "Question: Ann has 3 pens and buys 4. How many has she?\nAnswer:"
    )
    assert [message.role for message in example.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert example.messages[0].content.startswith("What is 1+1?\n\nReason step by step")
    assert example.messages[1] == Message("assistant", "1+1=<<1+1=2>>2\n#### 2")
    (alone,) = load_examples("gsm8k", settings(data_file=rows))
    assert (example.sample_id, example.reference) == (alone.sample_id, alone.reference)
    assert example.messages[4:] == alone.messages == (Message("user", alone.chat_prompt),)


def test_a_system_prompt_stands_first_in_both_forms(rows, shots):
    (example,) = load_examples(
        "gsm8k", settings(data_file=rows, system_prompt="Be brief.", num_shots=1, shots_file=shots)
    )
    assert example.prompt.startswith("Be brief.\n\nQuestion: What is 1+1?\n")
    assert example.messages[0] == Message("system", "Be brief.")
    (alone,) = load_examples("gsm8k", settings(data_file=rows, system_prompt="Be brief."))
    assert alone.prompt == "Be brief.\n\nQuestion: Ann has 3 pens and buys 4. How many has she?\nAnswer:"
    assert [message.role for message in alone.messages] == ["system", "user"]


def test_mbpp_shots_end_in_done(tmp_path):
    shots = write_jsonl(tmp_path / "shots.jsonl", {**MBPP_ROW, "task_id": 2, "text": "Subtract."})
    file = write_jsonl(tmp_path / "rows.jsonl", MBPP_ROW)
    (example,) = load_examples("mbpp", settings(data_file=file, num_shots=1, shots_file=shots))
    assert "\n[BEGIN]\ndef add(a, b):\n    return a + b\n[DONE]\n\nYou are an expert" in example.prompt
    assert example.messages[1] == Message("assistant", "```python\ndef add(a, b):\n    return a + b\n```")


@pytest.mark.parametrize(("task", "row", "summary"), [("xsum", XSUM_ROW, "summary"), ("cnn_dm", CNN_ROW, "highlights")])
def test_summaries_are_the_answers_of_articles(task, row, summary, tmp_path):
    other = {name: f"Other {value}" for name, value in row.items()}
    shots, file = write_jsonl(tmp_path / "shots.jsonl", other), write_jsonl(tmp_path / "rows.jsonl", row)
    (example,) = load_examples(task, settings(data_file=file, num_shots=1, shots_file=shots))
    assert f"\nSummary: {other[summary]}\n\nArticle: " in example.prompt
    assert example.messages[1] == Message("assistant", other[summary])


def test_the_hub_gives_shots_of_the_training_split_or_of_the_split_made_for_them(monkeypatch, tmp_path):
    asked = []

    def load_dataset(name, config, split, revision):
        asked.append(split)
        return [{**MBPP_ROW, **SHOTS[0], "text": f"{split} of {name}", "question": split}] * 3

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    file = write_jsonl(tmp_path / "rows.jsonl", {**MBPP_ROW, **GSM8K_ROW})
    for task in ("gsm8k", "mbpp"):
        load_examples(task, settings(data_file=file, num_shots=3))
    assert asked == ["train", "prompt"]
    read = find_task("gsm8k").read_from(settings(num_shots=3))
    assert (read["source"], read["shots"]) == ("openai/gsm8k/main/test", "openai/gsm8k/main/train")


def test_a_sample_that_is_among_the_shots_is_refused(shots):
    data = settings(data_file=shots, num_shots=2, shots_file=shots)
    with pytest.raises(
        PromptError, match=r"line 1: the sample is among the worked examples, .* --offset, or give other"
    ):
        load_examples("gsm8k", data)
    assert [isinstance(found, PromptError) for found in load_found("gsm8k", data)] == [True, True, False]
    left = load_examples("gsm8k", settings(data_file=shots, num_shots=2, shots_file=shots, offset=2))
    assert [example.sample_id for example in left] == ["gsm8k-00002"]


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("gsm8k", {"num_shots": 4}, "--num-shots 4: {shots} has 3 rows; give at most as many"),
        ("humaneval", {"num_shots": 1}, "--num-shots 1: rows of task humaneval have no answers to show"),
        ("jsonl", {"num_shots": 1}, "--num-shots 1: rows of task jsonl have no answers to show"),
        ("demo-code", {"num_shots": 1}, "--num-shots 1: rows of task demo-code have no answers to show"),
        ("demo-math", {"num_shots": 1, "shots_file": None}, "--shots-file is missing: task demo-math has no training"),
        ("gsm8k", {"num_shots": 1, "shots_file": "none.jsonl"}, "none.jsonl: no such file"),
    ],
)
def test_shots_that_cannot_be_had_are_one_line(task, given, said, rows, shots):
    data_file = {} if task.startswith("demo") else {"data_file": str(rows)}
    with pytest.raises(UsageError) as caught:
        load_examples(task, DataSettings.model_validate({"shots_file": str(shots), **data_file, **given}))
    assert said.format(shots=shots) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shot_that_is_none_of_the_task_is_named_with_its_file(rows, tmp_path):
    bad = write_jsonl(tmp_path / "bad.jsonl", {"question": "Why?", "answer": "Because."})
    with pytest.raises(TaskDataError, match=r"bad\.jsonl line 1: answer 'Because\.' has no `#### <number>`"):
        load_examples("gsm8k", settings(data_file=rows, num_shots=1, shots_file=bad))


def test_a_shuffle_is_of_all_samples_and_the_same_each_time(tmp_path):
    file = write_jsonl(tmp_path / "p.jsonl", *({"prompt": f"p{i}"} for i in range(50)))
    plain = load_examples("jsonl", settings(data_file=file))
    shuffled = load_examples("jsonl", settings(data_file=file, shuffle_seed=7))
    assert sorted(shuffled, key=lambda example: example.sample_id) == plain != shuffled
    assert shuffled != load_examples("jsonl", settings(data_file=file, shuffle_seed=8))
    assert [example.sample_id for example in shuffled[:4]] == ["00022", "00032", "00044", "00040"], "on every machine"
    part = settings(data_file=file, shuffle_seed=7, offset=10, limit=5)
    assert load_examples("jsonl", part) == list(iterate_found("jsonl", part)) == shuffled[10:15]


def test_a_shuffle_looks_at_every_row_for_ids_but_only_at_those_it_takes_for_prompts(tmp_path):
    rows = [{"prompt": f"p{i}", "id": i} for i in range(20)]
    file = write_jsonl(tmp_path / "p.jsonl", *rows, {"prompt": "again", "id": 3})
    with pytest.raises(TaskDataError, match="id '3' is taken by"):
        load_examples("jsonl", settings(data_file=file, shuffle_seed=1, limit=2))
    taken = load_examples("jsonl", settings(data_file=write_jsonl(file, *rows), shuffle_seed=1, limit=2))
    spoilt = [row if str(row["id"]) in {one.sample_id for one in taken} else {"id": row["id"]} for row in rows]
    assert load_examples("jsonl", settings(data_file=write_jsonl(file, *spoilt), shuffle_seed=1, limit=2)) == taken
    with pytest.raises(UsageError, match="--offset 20: task jsonl has 20 samples"):
        load_examples("jsonl", settings(data_file=write_jsonl(file, *rows), shuffle_seed=1, offset=20, limit=2))


def test_an_evaluation_decodes_shots_and_is_another_run_than_one_without(cli, tmp_path, shots):
    """On the embedded model, whose tokenizer has no template."""
    flags = [
        "--task",
        "demo-math",
        "--limit",
        "2",
        "--max-new-tokens",
        "8",
        "--methods",
        "vanilla,adadecode",
        "--threads",
        "1",
    ]
    more = ["--num-shots", "2", "--shots-file", str(shots), "--system-prompt", "Sums.", "--shuffle-seed", "5"]
    for out, given in (("zero", flags), ("two", [*flags, *more])):
        result = cli("eval", "--local", *given, "--out", tmp_path / out)
        assert result.exit_code == 0, result.stderr
        assert "parity 2/2" in result.stdout
    zero, two = (read_run(tmp_path / out) for out in ("zero", "two"))
    assert zero["fingerprint"] != two["fingerprint"]
    assert zero["provenance"]["data"] == {"demo-math": {"source": "embedded", "revision": None}}
    assert two["provenance"]["data"] == {"demo-math": {"source": "embedded", "revision": None, "shots": str(shots)}}
    assert two["config"]["shuffle_seed"] == 5
    ids = [{row["sample_id"] for row in read_samples(tmp_path / out).to_pylist()} for out in ("zero", "two")]
    assert ids[0] == {"demo-math-000", "demo-math-001"} != ids[1]
    shown = cli("tasks", "demo-math", "-n", 2, "--model", "demo", *more).stdout
    for row in read_samples(tmp_path / "two").to_pylist():
        assert f"demo-math {row['sample_id']}, plain prompt, {row['prompt_len']} tokens; " in shown
    assert cli("verify", tmp_path / "two").exit_code == 0
    assert "--num-shots 2" in json.dumps(two["starts"]) or two["config"]["num_shots"] == 2
    refused = cli("eval", "--local", *flags, "--out", tmp_path / "two")
    assert refused.exit_code == 2
    assert "different: num_shots, shots_file, shuffle_seed, system_prompt)" in refused.stderr
