"""On-policy outputs: what vanilla decoding would give, kept and reused for the same model and prompts only."""

import pyarrow.parquet as pq
import pytest

from adadecode.config import TrainConfig
from adadecode.engine.generate import generate
from adadecode.errors import UsageError
from adadecode.training.outputs import BATCH_PROMPTS, OUTPUTS, greedy_outputs
from tests.models import tiny_model

PROMPTS = [[1 + (i * j) % 90 for j in range(1, 4 + i % 7)] for i in range(1, 13)]
CONFIG = TrainConfig(model="tiny", task="jsonl", max_new_tokens=12)


def make_outputs(model, out, prompts=PROMPTS, config=CONFIG):
    """Outputs and the lines said."""
    lines: list[str] = []
    return greedy_outputs(model, prompts, config, out, lines.append), lines


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_batched_outputs_are_those_of_vanilla_decoding(family, tmp_path):
    model = tiny_model(family)
    outputs, _ = make_outputs(model, tmp_path)
    assert [output.prompt_ids for output in outputs] == PROMPTS
    for prompt_ids, output_ids in outputs:
        vanilla = generate(model, prompt_ids, width=1, max_new_tokens=12).generation
        assert tuple(output_ids) == vanilla.output_token_ids


def test_more_prompts_than_one_batch_come_back_in_order(tmp_path):
    model = tiny_model()
    prompts = [[1 + i % 96, 1 + i // 96] for i in range(BATCH_PROMPTS + 3)]
    outputs, _ = make_outputs(model, tmp_path, prompts, TrainConfig(model="tiny", task="jsonl", max_new_tokens=2))
    assert [output.prompt_ids for output in outputs] == prompts


def test_outputs_end_with_the_first_eos_and_keep_it(tmp_path):
    free, _ = make_outputs(tiny_model(), tmp_path)
    eos = free[0].output_ids[3]
    model = tiny_model(eos_token_id=eos)
    outputs, _ = make_outputs(model, tmp_path)
    for output, unstopped in zip(outputs, free, strict=True):
        ids = unstopped.output_ids
        assert output.output_ids == (ids[: ids.index(eos) + 1] if eos in ids else ids)
    assert len(outputs[0].output_ids) <= 4


def test_an_output_stops_at_the_end_of_the_context_as_in_decoding(tmp_path):
    model = tiny_model(context_len=16)
    long_prompt = [5] * 14
    outputs, _ = make_outputs(model, tmp_path, [[1, 2], long_prompt])
    assert [len(output.output_ids) for output in outputs] == [12, 2]
    vanilla = generate(model, long_prompt, width=1, max_new_tokens=12).generation
    assert tuple(outputs[1].output_ids) == vanilla.output_token_ids


def test_prompts_without_room_and_repeated_prompts_are_skipped_with_a_line(tmp_path):
    model = tiny_model(context_len=16)
    outputs, lines = make_outputs(model, tmp_path, [[1], [2], [3] * 16, [], [1]])
    assert [output.prompt_ids for output in outputs] == [[1], [2]]
    skipped = [line for line in lines if line.startswith("skipped")]
    assert len(skipped) == 3
    assert "has 16 tokens" in skipped[1]


@pytest.mark.parametrize("prompts", [[], [[1] * 16], [[1], [1]]])
def test_fewer_than_two_usable_prompts_are_refused(prompts, tmp_path):
    with pytest.raises(UsageError, match=r"prompts are usable; heads need at least 2"):
        make_outputs(tiny_model(context_len=16), tmp_path, prompts)


def test_outputs_of_the_same_model_and_prompts_are_reused(tmp_path):
    first, _ = make_outputs(tiny_model(), tmp_path)
    written_ns = (tmp_path / OUTPUTS).stat().st_mtime_ns
    second, lines = make_outputs(tiny_model(), tmp_path)
    assert second == first
    assert (tmp_path / OUTPUTS).stat().st_mtime_ns == written_ns
    assert lines == ["outputs: reusing 12 of outputs.parquet"]


def test_outputs_of_another_model_are_generated_again(tmp_path):
    make_outputs(tiny_model(), tmp_path)
    other = tiny_model(seed=1)
    outputs, lines = make_outputs(other, tmp_path)
    assert lines[0] == "outputs.parquet was made with another base_model_hash: generating again"
    vanilla = generate(other, PROMPTS[0], width=1, max_new_tokens=12).generation
    assert tuple(outputs[0].output_ids) == vanilla.output_token_ids
    assert pq.read_schema(tmp_path / OUTPUTS).metadata[b"base_model_hash"].decode() == other.model_hash


def test_outputs_of_other_prompts_or_limits_are_generated_again(tmp_path):
    model = tiny_model()
    make_outputs(model, tmp_path)
    _, lines = make_outputs(
        model, tmp_path, PROMPTS[:6], TrainConfig(model="tiny", task="jsonl", max_new_tokens=3, seed=1)
    )
    assert lines[0] == "outputs.parquet was made with another max_new_tokens, prompts_hash, seed: generating again"


def test_damaged_outputs_are_generated_again(tmp_path):
    model = tiny_model()
    first, _ = make_outputs(model, tmp_path)
    (tmp_path / OUTPUTS).write_bytes(b"PAR1 but not really")
    second, lines = make_outputs(model, tmp_path)
    assert second == first
    assert "damaged" in lines[0]


def test_the_parquet_file_holds_flat_int32_lists(tmp_path):
    outputs, _ = make_outputs(tiny_model(), tmp_path)
    table = pq.read_table(tmp_path / OUTPUTS)
    assert {field.name: str(field.type) for field in table.schema} == {
        "prompt_token_ids": "list<element: int32>",
        "output_token_ids": "list<element: int32>",
    }
    assert table["output_token_ids"].to_pylist() == [output.output_ids for output in outputs]
    assert [path.name for path in tmp_path.iterdir()] == [OUTPUTS]
