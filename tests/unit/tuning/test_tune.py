import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from adadecode.cli.main import main
from adadecode.settings import DRAWN_BEFORE, DecodeSettings, EvalConfig, build_settings, read_policy, tuned_for
from adadecode.tuning.table import TUNE_ROWS
from tests.folders import save_tiny_heads, save_tiny_model, write_prompts
from tests.json_keys import key_paths
from tests.models import needs_compiler

ROOT = Path(__file__).parents[3]
# what tune.json has that the reference runs of 0.1.0 have not, and what only some policies have
NEW_KEYS = {f"machine.{name}" for name in ("attention", "float32_precision", "reduced_precision_sums")}
NEW_KEYS |= {
    "costs.per_segment_s",
    "settings.gpus_per_worker",
    "settings.foreign_heads",
    *("machine.kind", *(f"machine.kind.{name}" for name in ("processor", "threads", "dtype", "weights"))),
    "provenance.code_hash",
    "made_from.eos_token_ids",
    "made_from.context_len",
    "made_from.threads",
    "made_from.torch",
    "made_from.space.block_exits",
    *(f"settings.{name}" for name in ("num_shots", "shots_file", "system_prompt", "shuffle_seed", *DRAWN_BEFORE)),
}
OPTIONAL_KEYS = {"policy.gamma", "policy.reject", "policy.ngram"}
OTHER_KEYS = {"policy.stop", "made_from.space.gamma_floor", "made_from.space.ngram_floor"}  # than 0.1.0
TOTAL = "variants[].speedup_total"
OTHER_INTERVALS = {
    f"{TOTAL}.value",
    f"{TOTAL}.low",
    f"{TOTAL}.high",
    TOTAL,
    "variants[].speedup.num_prompts",
}  # than 0.1.0
KEYED_BY_NAME = frozenset({"made_from.heads_hash", "provenance.packages"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    save_tiny_model(folder / "model", num_layers=4)
    save_tiny_heads(folder / "heads", folder / "model", (1, 2, 3))
    prompts = [" ".join(f"w{3 + (7 * i + j * j) % 90}" for j in range(1 + i)) for i in range(12)]
    write_prompts(folder / "prompts.jsonl", prompts)
    return folder


def flags(folder, **changed) -> list[str]:
    settings = {
        "--model": folder / "model",
        "--heads": folder / "heads",
        "--task": "jsonl",
        "--data-file": folder / "prompts.jsonl",
        "--dtype": "float32",
        "--threads": 1,
        "--max-new-tokens": 16,
        "--max-drafts": 3,
        "--folds": 2,
        "--repeats": 1,
        "--kernels": "native",
        **{"--" + name.replace("_", "-"): value for name, value in changed.items()},
    }
    return [str(part) for flag, value in settings.items() for part in (flag, value)]


def run(*arguments: object):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def tuned(folder):
    """The output folder of a whole run of `tune`, and what it printed."""
    result = run("tune", *flags(folder), "--out", folder / "tuned")
    assert result.exit_code == 0, result.output
    return folder / "tuned", result.output


@needs_compiler
def test_tune_writes_a_policy_that_eval_takes(folder, tuned, tmp_path):
    out, _ = tuned
    policy = yaml.safe_load((out / "policy.yaml").read_text())
    assert policy["tuned"]["predicted_speedup"] > 0
    machine = policy["tuned"]["machine"]
    assert tuned_for(str(out / "policy.yaml")) == {name: str(value) for name, value in machine.items()}
    assert set(read_policy(str(out / "policy.yaml"))) <= set(DecodeSettings.model_fields)
    evaluated = run(
        *("eval", "--local", "--policy", out / "policy.yaml", "--limit", 4, "--offset", 2, "--kernels", "native"),
        *("--model", folder / "model", "--heads", folder / "heads", "--task", "jsonl", "--threads", 1),
        *(
            "--data-file",
            folder / "prompts.jsonl",
            "--max-new-tokens",
            16,
            "--dtype",
            "float32",
            "--out",
            tmp_path / "run",
        ),
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert "another kind of machine" not in evaluated.output, "it was tuned here"
    decode = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["decode"]
    assert decode["exits"] == policy["exits"]
    assert decode["max_drafts"] == policy["max_drafts"]


@needs_compiler
def test_tune_says_what_was_predicted_measured_and_possible(tuned):
    out, output = tuned
    result = json.loads((out / "tune.json").read_text())
    by_name = {row["variant"]: row for row in result["variants"]}
    assert list(by_name) == ["vanilla", "vanilla-w1", "tuned"]  # the paper's five drafts are not in a space of three
    assert by_name["tuned"]["num_replayed_alike"] == by_name["tuned"]["num_replayed"] == 3
    assert all(row["num_exact"] == row["num_checked"] for row in result["variants"])
    assert result["oracle"]["oracle with n-grams"] > 0
    for shown in ("oracle", "tuned", "predicted", "cross-validated", "of the perfect policy's speed"):
        assert shown in output
    rows = pq.read_table(out / "tune.parquet")
    assert rows.schema.equals(TUNE_ROWS)
    assert rows.num_rows == 3 * 3


@needs_compiler
@pytest.mark.parametrize("name", ["tune-demo", "tune-gsm8k", "tune-humaneval"])
def test_the_files_have_the_keys_of_the_reference_runs(tuned, name):
    out, _ = tuned
    before = ROOT / "results" / "reference" / name
    fresh, stored = (json.loads((folder / "tune.json").read_text()) for folder in (out, before))
    # a policy has reject and ngram where they are set, and gamma where it has exits
    assert key_paths(fresh, KEYED_BY_NAME) ^ key_paths(stored, KEYED_BY_NAME) <= {
        *NEW_KEYS,
        *OPTIONAL_KEYS,
        *OTHER_KEYS,
        *OTHER_INTERVALS,
    }
    assert key_paths(fresh, KEYED_BY_NAME) >= NEW_KEYS
    assert list(fresh) == list(stored)
    assert [list(row) for row in fresh["variants"]][:3] == [list(row) for row in stored["variants"]][:3]
    fresh, stored = (yaml.safe_load((folder / "policy.yaml").read_text()) for folder in (out, before))
    assert {*fresh} ^ {*stored} <= {"reject", "ngram", "stop", "gamma"}
    assert list(fresh["tuned"]) == list(stored["tuned"])
    assert fresh["tuned"]["oracle_speedup"].keys() == stored["tuned"]["oracle_speedup"].keys()


@needs_compiler
def test_a_rerun_reuses_the_trace_and_another_length_is_refused(folder, tuned):
    out, _ = tuned
    before = (out / "trace.parquet").stat().st_mtime_ns
    again = run("tune", *flags(folder), "--out", out)
    assert again.exit_code == 0, again.output
    assert (out / "trace.parquet").stat().st_mtime_ns == before
    assert "trace: 12/12" not in again.output
    other = run("tune", *flags(folder, max_new_tokens=12), "--out", out)
    assert other.exit_code == 2
    assert "recorded with another space; delete it to record again" in other.stderr
    assert len(other.stderr.splitlines()) == 1


@needs_compiler
def test_a_trace_of_another_model_or_other_heads_is_refused(folder, tuned, tmp_path):
    out, _ = tuned
    other_model = save_tiny_model(tmp_path / "model", num_layers=4, seed=1)
    other_heads = save_tiny_heads(tmp_path / "heads", other_model, (1, 2, 3))
    refused = run("tune", *flags(folder, model=other_model, heads=other_heads), "--out", out)
    assert refused.exit_code == 2
    assert "recorded with another model_hash;" in refused.stderr
    more_heads = save_tiny_heads(tmp_path / "more", folder / "model", (1, 2, 3), seed=5)
    refused = run("tune", *flags(folder, heads=more_heads), "--out", out)
    assert refused.exit_code == 2
    assert "recorded with another heads_hash" in refused.stderr
    chatty = shutil.copytree(folder / "model", tmp_path / "chatty")
    (chatty / "chat_template.jinja").write_text("{{ messages[0]['content'] }} w3")
    refused = run("tune", *flags(folder, model=chatty), "--out", out)
    assert refused.exit_code == 2
    assert "recorded with another tokenizer_hash, prompts_hash;" in refused.stderr


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"exits": "1,4"}, "--exits 1,4: there are no heads at [4]; the heads are at 1,2,3"),
        ({"heads": "original"}, "--heads original: tuning needs heads in a folder"),
        ({"limit": 8, "offset": 11}, "1 prompts to tune on and 0 held out, of 1; at least 4 and 2 are needed"),
        ({"held_out": 0.99}, "1 prompts to tune on and 11 held out, of 12; at least 4 and 2 are needed"),
        ({"offset": 12}, "--offset 12: task jsonl has 12 samples"),
        ({"max_drafts": 9}, "--max-drafts 9"),
        ({"head": "shortlist"}, "--head shortlist: the heads in"),
        ({"folds": 1}, "--folds 1"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, changed, expected):
    result = run("tune", *flags(folder, kernels="eager", **changed), "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_truncated_head_file_is_one_line(folder, tmp_path):
    save_tiny_heads(tmp_path / "heads", folder / "model", (1, 2, 3))
    tensors = tmp_path / "heads" / "exit_heads.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    result = run("tune", *flags(folder, heads=tmp_path / "heads"), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "the files are damaged" in result.stderr


def test_a_policy_naming_exits_the_heads_lack_is_one_line(folder, tmp_path):
    (tmp_path / "policy.yaml").write_text("exits: [1, 5]\ngamma: 0.5\ntuned: {predicted_speedup: 1.2}\n")
    result = run(
        *("eval", "--local", "--policy", tmp_path / "policy.yaml", "--kernels", "eager", "--dtype", "float32"),
        *("--model", folder / "model", "--heads", folder / "heads", "--task", "jsonl", "--threads", 1),
        *("--data-file", folder / "prompts.jsonl", "--out", tmp_path / "run"),
    )
    assert result.exit_code == 2
    assert "--exits 1,5: there are no heads at [5]" in result.stderr


def test_what_a_policy_file_says_of_itself_decides_nothing(tmp_path):
    plain, told = tmp_path / "plain.yaml", tmp_path / "told.yaml"
    plain.write_text("exits: [4]\ngamma: 0.5\n")
    told.write_text("exits: [4]\ngamma: 0.5\ntuned:\n  predicted_speedup: 9.9\n")
    configs = [build_settings(EvalConfig, None, {"policy": str(path)}) for path in (plain, told)]
    assert configs[0].decode.model_dump(exclude={"policy"}) == configs[1].decode.model_dump(exclude={"policy"})


@needs_compiler
def test_heads_that_are_a_shortlist_alone_are_tuned_without_the_papers_full_ones(folder, tmp_path):
    trained = run(
        *("train-heads", "--model", folder / "model", "--task", "jsonl", "--data-file", folder / "prompts.jsonl"),
        *("--kind", "shortlist", "--exits", "1,2,3", "--epochs", 1, "--max-new-tokens", 8, "--dtype", "float32"),
        *("--threads", 1, "--shortlist-len", 40, "--out", tmp_path / "heads"),
    )
    assert trained.exit_code == 0, trained.output
    tuned = run("tune", *flags(folder, heads=tmp_path / "heads", max_drafts=5), "--out", tmp_path / "tuned")
    assert tuned.exit_code == 0, tuned.output
    result = json.loads((tmp_path / "tuned" / "tune.json").read_text())
    assert result["policy"]["head"] == "shortlist"
    assert [row["variant"] for row in result["variants"]] == ["vanilla", "vanilla-w1", "paper, shortlist", "tuned"]


def test_a_policy_file_that_is_no_mapping_or_has_odd_keys_is_one_line(tmp_path):
    for content, expected in (("", "expected a mapping"), ("1: 2\na: 3\n", "line 1: there is no setting `1`; ")):
        (tmp_path / "policy.yaml").write_text(content)
        result = run("plan", "--task", "demo-math", "--policy", tmp_path / "policy.yaml")
        assert result.exit_code == 2
        assert expected in result.stderr
        assert len(result.stderr.splitlines()) == 1
