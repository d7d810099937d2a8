"""On-policy outputs: what vanilla decoding would give, kept in parts and reused for the same model and prompts only."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy
from adadecode.errors import PromptError, RunFolderError, UsageError
from adadecode.model.head_files import TENSORS
from adadecode.settings import TrainConfig
from adadecode.training.outputs import OUTPUTS_DIR, make_outputs, part_path, read_part
from adadecode.training.train import train_heads
from tests.models import HAS_COMPILER, tiny_model

PROMPTS = [[1 + (i * j) % 90 for j in range(1, 4 + i % 7)] for i in range(1, 13)]
CONFIG = TrainConfig(model="tiny", task="jsonl", max_new_tokens=12, part_prompts=5)
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler on this machine for the native kernels")


def outputs_of(model, out, prompts=PROMPTS, config=CONFIG):
    """Outputs and the lines said."""
    lines: list[str] = []
    parts = make_outputs(model, prompts, config, out, lines.append)
    return [output for part in parts for output in read_part(out, part)], lines


def check_vanilla(model, outputs):
    for prompt_ids, output_ids in outputs:
        vanilla = generate(model, Request(prompt_ids, 12), Policy(rows=1)).generation
        assert tuple(output_ids) == vanilla.output_token_ids


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_batched_outputs_are_those_of_vanilla_decoding(family, tmp_path):
    model = tiny_model(family)
    outputs, _ = outputs_of(model, tmp_path)
    assert [output.prompt_ids for output in outputs] == PROMPTS
    check_vanilla(model, outputs)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_of_native_kernels_are_what_an_evaluation_decodes(dtype, tmp_path):
    model = tiny_model(dtype=dtype, kernels="native")
    outputs, _ = outputs_of(model, tmp_path)
    assert [output.prompt_ids for output in outputs] == PROMPTS
    check_vanilla(model, outputs)


def test_more_prompts_than_one_batch_come_back_in_order(tmp_path):
    prompts = [[1 + i % 96, 1 + i // 96] for i in range(67)]
    config = TrainConfig(model="tiny", task="jsonl", max_new_tokens=2, batch_prompts=64)
    outputs, _ = outputs_of(tiny_model(), tmp_path, prompts, config)
    assert [output.prompt_ids for output in outputs] == prompts


def test_outputs_end_with_the_first_eos_and_keep_it(tmp_path):
    free, _ = outputs_of(tiny_model(), tmp_path / "free")
    eos = free[0].output_ids[3]
    outputs, _ = outputs_of(tiny_model(eos_token_id=eos), tmp_path / "stopped")
    for output, unstopped in zip(outputs, free, strict=True):
        ids = unstopped.output_ids
        assert output.output_ids == (ids[: ids.index(eos) + 1] if eos in ids else ids)
    assert len(outputs[0].output_ids) <= 4


def test_an_output_stops_at_the_end_of_the_context_as_in_decoding(tmp_path):
    model = tiny_model(context_len=16)
    outputs, _ = outputs_of(model, tmp_path, [[1, 2], [5] * 14])
    assert [len(output.output_ids) for output in outputs] == [12, 2]
    check_vanilla(model, outputs)


def test_prompts_that_cannot_be_used_and_repeated_ones_are_left_out_with_a_line(tmp_path):
    prompts = [[1], [2], [3] * 16, [], PromptError("jsonl/7: no text"), [1]]
    outputs, lines = outputs_of(tiny_model(context_len=16), tmp_path, prompts)
    assert [output.prompt_ids for output in outputs] == [[1], [2]]
    assert lines[0].startswith(
        "3 of 6 prompts left out, the first: prompt 2: the prompt has 16 tokens; the model's con"
    )
    assert lines[1] == "skipped 1 prompts that occur more than once"


def test_a_prompt_with_a_token_that_the_model_lacks_is_left_out(tmp_path):
    outputs, lines = outputs_of(tiny_model(), tmp_path, [[1], [2], [3, 97]])
    assert [output.prompt_ids for output in outputs] == [[1], [2]]
    assert lines[0].startswith(
        "1 of 3 prompts left out: prompt 2: the prompt has token ids 3 to 97, the model knows 0 to"
    )


@pytest.mark.parametrize("prompts", [[], [[1] * 16], [[1], [1]]])
def test_fewer_than_two_usable_prompts_are_refused(prompts, tmp_path):
    with pytest.raises(UsageError, match=r"prompts are usable; heads need at least 2"):
        outputs_of(tiny_model(context_len=16), tmp_path, prompts)


def test_when_no_prompt_can_be_used_the_line_says_why(tmp_path):
    with pytest.raises(UsageError, match=r"0 of 2 prompts .* left out, the first: jsonl/0: the template raises"):
        outputs_of(tiny_model(), tmp_path, [PromptError("jsonl/0: the template raises"), []])
    assert not (tmp_path / OUTPUTS_DIR).exists()


def test_outputs_of_the_same_model_and_prompts_are_reused(tmp_path):
    first, _ = outputs_of(tiny_model(), tmp_path)
    written_ns = [part_path(tmp_path, i).stat().st_mtime_ns for i in range(3)]
    second, lines = outputs_of(tiny_model(), tmp_path)
    assert second == first
    assert [part_path(tmp_path, i).stat().st_mtime_ns for i in range(3)] == written_ns
    assert lines == [f"outputs: reusing {n} of part-0000{i}.parquet" for i, n in enumerate((5, 5, 2))]


def test_more_prompts_make_only_the_parts_that_change(tmp_path):
    outputs_of(tiny_model(), tmp_path, PROMPTS[:7])
    outputs, lines = outputs_of(tiny_model(), tmp_path)
    assert [output.prompt_ids for output in outputs] == PROMPTS
    assert lines[:2] == [
        "outputs: reusing 5 of part-00000.parquet",
        "part-00001.parquet was made with another prompts_hash: generating again",
    ]


def test_outputs_of_another_model_or_limit_are_generated_again(tmp_path):
    outputs_of(tiny_model(), tmp_path)
    other = tiny_model(seed=1)
    outputs, lines = outputs_of(other, tmp_path)
    assert lines[0] == "part-00000.parquet was made with another base_model_hash: generating again"
    check_vanilla(other, outputs)
    _, lines = outputs_of(other, tmp_path, config=CONFIG.model_copy(update={"max_new_tokens": 3}))
    assert lines[0] == "part-00000.parquet was made with another max_new_tokens: generating again"


def test_outputs_of_other_kernels_are_generated_again_and_parts_that_do_not_say_count_as_auto(tmp_path):
    outputs_of(tiny_model(), tmp_path)
    for i in range(3):
        table = pq.read_table(part_path(tmp_path, i))
        kept = {name: value for name, value in table.schema.metadata.items() if name != b"kernels"}
        pq.write_table(table.replace_schema_metadata(kept), part_path(tmp_path, i))
    assert outputs_of(tiny_model(), tmp_path)[1][0] == "outputs: reusing 5 of part-00000.parquet"
    eager = CONFIG.model_copy(update={"kernels": "eager"})
    _, lines = outputs_of(tiny_model(), tmp_path, config=eager)
    assert lines[0] == "part-00000.parquet was made with another kernels: generating again"
    assert outputs_of(tiny_model(), tmp_path, config=eager)[1][0] == "outputs: reusing 5 of part-00000.parquet"


@needs_compiler
def test_outputs_of_what_auto_came_to_elsewhere_are_generated_again(tmp_path):
    outputs_of(tiny_model(kernels="auto"), tmp_path)
    without_compiler = tiny_model(kernels="eager")
    _, lines = outputs_of(without_compiler, tmp_path)
    assert lines[0] == "part-00000.parquet was made with another kernels: generating again"
    assert outputs_of(without_compiler, tmp_path)[1][0] == "outputs: reusing 5 of part-00000.parquet"


@pytest.mark.parametrize("content", [b"PAR1 but not really", b""])
def test_a_damaged_part_is_generated_again(content, tmp_path):
    first, _ = outputs_of(tiny_model(), tmp_path)
    part_path(tmp_path, 1).write_bytes(content)
    second, lines = outputs_of(tiny_model(), tmp_path)
    assert second == first
    assert lines[1] == "part-00001.parquet is damaged: generating again"


def test_the_parquet_files_hold_flat_int32_lists_and_nothing_is_left_beside_them(tmp_path):
    outputs, _ = outputs_of(tiny_model(), tmp_path)
    tables = [pq.read_table(part_path(tmp_path, i)) for i in range(3)]
    assert {field.name: str(field.type) for field in tables[0].schema} == {
        "prompt_token_ids": "list<element: int32>",
        "output_token_ids": "list<element: int32>",
    }
    stored = [ids for table in tables for ids in table["output_token_ids"].to_pylist()]
    assert stored == [output.output_ids for output in outputs]
    assert sorted((tmp_path / OUTPUTS_DIR).iterdir()) == [part_path(tmp_path, i) for i in range(3)]


def test_outputs_of_other_heads_are_taken_and_not_made_again(tmp_path):
    model, config = tiny_model(), CONFIG.model_copy(update={"kind": "original", "exits": (1, 2)})
    first, second = tmp_path / "first", tmp_path / "second"
    train_heads(model, PROMPTS, config, first, lambda line: None)
    lines: list[str] = []
    shared = config.model_copy(update={"outputs": str(first)})
    train_heads(model, PROMPTS, shared, second, lines.append)
    assert any("reusing" in line for line in lines)
    assert not (second / OUTPUTS_DIR).exists()
    assert (second / TENSORS).read_bytes() == (first / TENSORS).read_bytes()


def test_a_part_that_was_changed_in_the_middle_is_refused_in_one_line(tmp_path):
    model = tiny_model()
    parts = make_outputs(model, PROMPTS, CONFIG, tmp_path, lambda line: None)
    path = part_path(tmp_path, 1)
    table = pq.read_table(path)
    changed = [[token_id + 1 for token_id in ids] for ids in table["output_token_ids"].to_pylist()]
    columns = [table["prompt_token_ids"], pa.array(changed, pa.list_(pa.int32()))]
    pq.write_table(pa.table(columns, schema=table.schema), path)
    assert make_outputs(model, PROMPTS, CONFIG, tmp_path, lambda line: None) == parts, "its metadata still match"
    with pytest.raises(RunFolderError, match=r"part-00001\.parquet: damaged or replaced .* delete it and run"):
        read_part(tmp_path, parts[1])
    whole = part_path(tmp_path, 0).read_bytes()
    part_path(tmp_path, 0).write_bytes(whole[:60] + bytes(20) + whole[80:])
    with pytest.raises(RunFolderError, match=r"part-00000\.parquet: damaged or replaced"):
        read_part(tmp_path, parts[0])


def test_outputs_of_other_settings_are_never_overwritten(tmp_path):
    make_outputs(tiny_model(), PROMPTS, CONFIG, tmp_path, lambda line: None)
    before = part_path(tmp_path, 0).read_bytes()
    shared = CONFIG.model_copy(update={"outputs": str(tmp_path), "max_new_tokens": 5})
    with pytest.raises(RunFolderError, match=r"--outputs .*part-00000.parquet was made with another max_new_tokens"):
        make_outputs(tiny_model(), PROMPTS, shared, tmp_path, lambda line: None)
    assert part_path(tmp_path, 0).read_bytes() == before


def test_an_outputs_folder_that_is_a_file_is_refused_before_anything_is_generated(tmp_path):
    (tmp_path / "file").write_text("")
    config = CONFIG.model_copy(update={"outputs": str(tmp_path / "file")})
    with pytest.raises(RunFolderError, match=r"--outputs .* cannot be made a folder"):
        train_heads(tiny_model(), PROMPTS, config, tmp_path / "out", lambda line: None)
