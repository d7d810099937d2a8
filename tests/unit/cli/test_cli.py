"""The command line: every mistake is one line and exit code 2, and every command does what it says."""

import json

import pytest
import torch

from adadecode import __version__
from adadecode.model.head_files import FACTS
from adadecode.runs.folder import read_run, read_samples
from adadecode.settings import DecodeSettings
from tests.folders import save_tiny_model, write_prompts

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible")


@pytest.fixture
def eval_error(tiny, usage_error, tmp_path):
    """The line with which a local run of the tiny folders with `changed` flags is refused."""

    def refuse(*more: object, **changed: object) -> str:
        out = [] if "--out" in more else ["--out", tmp_path / "run"]
        return usage_error("eval", "--local", *tiny.flags(**changed), *out, *more)

    return refuse


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": "mmlu"}, "--task mmlu: unknown task; use demo (both demo tasks) or one of gsm8k, "),
        ({"data_file": None}, "--data-file is missing: task jsonl reads your prompts from a"),
        ({"data_file": "none.jsonl"}, "none.jsonl: no such file; give an existing one with --data-file"),
        ({"prompt_field": "question"}, "line 1: no field 'question' among its fields (prompt)"),
        ({"gamma": -0.1}, "--gamma -0.1: "),
        ({"gamma": 1.1}, "--gamma 1.1: "),
        ({"gamma": "abc"}, "'--gamma': 'abc' must be a number or one per exit"),
        ({"gamma": "0.5,1.5"}, "--gamma 0.5,1.5: "),
        ({"gamma": "0.5,0.6,0.7"}, "--gamma 0.5,0.6,0.7: 3 thresholds for the 2 exits 1,2"),
        ({"ngram": 1}, "--ngram 1.0: "),
        ({"ngram": "2,4"}, "--ngram"),
        ({"reject": 1.5}, "--reject 1.5: "),
        ({"gate": -1}, "--gate -1.0: "),
        ({"gate": 0.5}, "--gate 0.5: the heads in "),
        ({"head": "shortlist"}, "--head shortlist: the heads in "),
        ({"head": "tiny"}, "--head 'tiny': Input should be 'full' or 'shortlist'"),
        (
            {"kernels": "fast"},
            "--kernels 'fast': Input should be 'auto', 'native', 'eager', 'graphs', 'compile' or 'transformers'",
        ),
        ({"kernels": "native", "dtype": "float16"}, "--kernels native: only on a CPU in float32 or bfloat16"),
        ({"policy": "none.yaml"}, "--policy 'none.yaml': give paper, demo or a YAML file"),
        ({"exits": "4,2"}, "--exits 4,2: exit layers must increase"),
        ({"exits": "0"}, "--exits 0: exit layers must increase"),
        ({"exits": "a,b"}, "'--exits': 'a,b' must be whole numbers with commas"),
        ({"exits": "99"}, "--exits 99: there are no heads at [99]; the heads are at 1,2"),
        ({"exits": "1,3"}, "--exits 1,3: there are no heads at [3]; the heads are at 1,2"),
        ({"heads": None}, "--heads is missing: model "),
        ({"heads": "original", "head": "shortlist"}, "--heads original is the model's own LM head, so --head must be"),
        ({"heads": "original", "gate": 0.5}, "so --head must be full and --gate 0, not full and 0.5: give them, or "),
        ({"heads": "original", "exits": "4"}, "exit layers [4] must increase and lie in 1..3 for a model of 4 layers"),
        ({"heads": "none"}, "--heads 'none': not a folder; give one that `adadecode train-heads` wrote"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0: "),
        ({"max_drafts": -1}, "--max-drafts -1: "),
        ({"methods": "adadecode"}, "--methods adadecode: methods must be distinct and include vanilla"),
        ({"methods": "vanilla,eagle"}, "--methods 'eagle': Input should be 'vanilla', 'vanilla-w1', "),
        ({"methods": ""}, "--methods '': "),
        ({"limit": 0}, "--limit 0: "),
        ({"dtype": "int8"}, "--dtype 'int8': "),
        ({"device": "tpu"}, "--device 'tpu': "),
        ({"workers": 0}, "--workers 0: "),
        ({"workers": 2}, "a local run has one worker"),
        ({"threads": 0}, "--threads 0: "),
        ({"repeats": "x"}, "'--repeats': 'x' is not a valid integer"),
        ({"config": "none.yaml"}, "'--config': File 'none.yaml' does not exist"),
        ({"gama": 0.5}, "No such option"),
        pytest.param({"device": "cuda"}, "--device 'cuda': no CUDA device is visible", marks=no_cuda),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_bad_flag_is_one_line(eval_error, changed, message):
    assert message in eval_error(**changed)


def test_a_model_that_is_not_there_is_one_line(eval_error, tmp_path, monkeypatch):
    missing = tmp_path / "none"
    assert f"--model {str(missing)!r} cannot be loaded" in eval_error(model=missing)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "--model 'no/such-model' cannot be loaded" in eval_error("--out", tmp_path / "hub", model="no/such-model")


def test_a_malformed_line_is_named_by_its_number(eval_error, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "w5"}\n{"prompt": \n')
    assert f"{bad} line 2: " in eval_error(data_file=bad)
    bad.write_text('{"prompt": "w5"}\n\n[1]\n')
    assert f"{bad} line 3: " in eval_error(data_file=bad)


def test_an_empty_data_set_is_one_line(eval_error, tmp_path):
    assert "the data set is empty" in eval_error(data_file=write_prompts(tmp_path / "empty.jsonl", []))


def test_heads_of_another_model_are_one_line(eval_error, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=1)
    line = eval_error(model=other)
    assert "made for 'tiny' with weights " in line
    assert "train heads for this model with `adadecode train-heads`" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gama: 0.5\n", "line 1: there is no setting `gama`; did you mean `gamma`?"),
        ("- 1\n", "expected a mapping"),
        ("a: [\n", "cannot be read as YAML"),
    ],
)
def test_a_bad_settings_file_is_one_line(eval_error, text, message, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert message in eval_error(config=file)


def test_an_output_folder_of_another_run_or_with_a_file_in_the_way_is_one_line(cli, tiny, eval_error, tmp_path):
    flags = tiny.flags(limit=1, max_new_tokens=2, methods="vanilla", heads=None)
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 0
    line = eval_error(limit=1, max_new_tokens=2)
    assert "belongs to another run" in line
    assert "different: heads, methods)" in line
    (tmp_path / "file").write_text("")
    assert "a file is in the way: give a run's folder, or choose another --out" in eval_error(
        "--out", tmp_path / "file"
    )
    assert "a file is in the way: give a run's folder, or choose another --out" in eval_error(
        "--out", tmp_path / "file" / "below"
    )


def test_a_revision_means_nothing_for_a_folder(cli, tiny, tmp_path):
    flags = tiny.flags(limit=1, max_new_tokens=2, revision="nonsense")
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 0


def test_flags_win_over_the_settings_file_and_the_run_keeps_what_was_resolved(cli, tiny, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("warmup: 0\nlimit: 2\nrepeats: 2\nlocal: true\ndecode: {gamma: 0.9, max_drafts: 2}\n")
    result = cli("eval", *tiny.flags(config=file, limit=1, gamma=0.25), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    config = read_run(tmp_path / "run")["config"]
    assert (config["warmup"], config["limit"], config["repeats"], config["local"]) == (0, 1, 2, True)
    changed = {"gamma": 0.25, "max_drafts": 2, "max_new_tokens": 10}
    assert config["decode"] == DecodeSettings().model_dump(mode="json") | changed
    assert read_samples(tmp_path / "run").num_rows == 1 * 3 * 2


def test_the_run_folder_is_named_by_task_and_fingerprint_without_out(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("eval", "--local", *tiny.flags(limit=1, max_new_tokens=2)).exit_code == 0
    (run,) = (tmp_path / "results").iterdir()
    assert run.name == f"jsonl-{read_run(run)['fingerprint'][:8]}"


GENERATE = ("task", "data_file", "shard_size")


def generate_flags(tiny, **changed: object) -> list[str]:
    return tiny.flags(**dict.fromkeys(GENERATE), **changed)


def test_generate_prints_text_legend_and_statistics(cli, tiny):
    result = cli("generate", "w10 w20 w30", *generate_flags(tiny))
    assert result.exit_code == 0, result.stderr
    assert "w" in result.stdout.splitlines()[0]
    assert "drafted at layer 1 2 or given by all 4" in result.stdout
    assert "adadecode: 10 tokens in " in result.stdout
    assert " rounds, " in result.stdout
    assert "layer 1: " in result.stdout
    assert "vanilla: " not in result.stdout


def test_generate_compare_says_that_the_tokens_are_equal(cli, tiny):
    result = cli("generate", "w10 w20 w30", *generate_flags(tiny), "--compare")
    assert result.exit_code == 0
    assert "vanilla: 10 tokens in " in result.stdout
    assert result.stdout.endswith("tokens equal to vanilla's\n")


def test_generate_refuses_what_eval_refuses(usage_error, tiny):
    assert "--gamma 2.0: " in usage_error("generate", "w5", *generate_flags(tiny, gamma=2))
    assert "no heads at [3]" in usage_error("generate", "w5", *generate_flags(tiny, exits=3))
    assert "--heads is missing" in usage_error("generate", "w5", *generate_flags(tiny, heads=None))


def test_generate_takes_a_file_of_an_evaluations_settings(cli, tiny, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("task: jsonl\nworkers: 2\nlimit: 3\ngamma: 0.02\n")
    result = cli("generate", "w10 w20", *generate_flags(tiny, gamma=None), "--config", file)
    assert result.exit_code == 0, result.stderr
    assert "adadecode: 10 tokens in " in result.stdout


def test_generate_explains_a_prompt_of_no_tokens(usage_error, tiny):
    line = usage_error("generate", "", *generate_flags(tiny))
    assert line.startswith("adadecode: the prompt has 0 tokens; ")


def test_plan_counts_the_rows_and_writes_nothing(cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("plan", *tiny.flags(model="no/such-model", heads="none", repeats=2))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == "jsonl: 5 samples in 3 shards of at most 2"
    assert "5 samples x 3 methods x 2 repeats = 30 rows; plan hash " in result.stdout
    assert not list(tmp_path.iterdir())


def test_plan_of_the_demo_has_both_embedded_prompt_sets(cli):
    result = cli("plan")
    assert result.stdout.splitlines()[:2] == [
        "demo-math: 24 samples in 6 shards of at most 4",
        "demo-code: 24 samples in 6 shards of at most 4",
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        *(([command, "--out", ""], "--out") for command in ("eval", "sweep", "bench", "tune")),
        (["train-heads", "--task", "gsm8k", "--out", " "], "--out"),
        (["plan", "--rates", ""], "--rates"),
        (["report", ""], "RUNS..."),
        (["verify", ""], "RUN"),
        (["submit", "--working-dir", "", "eval", "--out", "a"], "--working-dir"),
        (["submit", "--address", "", "eval", "--out", "a"], "--address"),
    ],
)
def test_empty_text_is_no_folder(usage_error, arguments, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = usage_error(*arguments)
    assert line.startswith(f"Error: Invalid value for '{named}': '")
    assert line.endswith("give one")
    assert not list(tmp_path.iterdir())


def test_a_job_needs_a_folder_that_is_not_empty_text(usage_error):
    for given in (["--out", ""], ["--out="]):
        assert usage_error("submit", "eval", *given) == "adadecode: '' names no folder: give one"


@pytest.mark.parametrize("gpus", ["0", "1,-2", "100001", "1" + "0" * 30])
def test_plan_refuses_numbers_of_workers_that_no_cluster_has(usage_error, gpus):
    line = usage_error("plan", "--rates", "anything", "--gpus", gpus)
    assert line == f"adadecode: --gpus {gpus}: numbers of workers, each from 1 to 100000, such as 1,2,4,8"


@pytest.mark.parametrize("flags", [["--limit", "9" * 22], ["--threads", 10**12], ["--offset", 2**63]])
def test_a_number_too_large_for_what_computes_with_it_is_one_line(usage_error, flags):
    assert f"{flags[0]} {flags[1]}: Input should be less than or equal to 1" in usage_error("plan", *flags)


def test_report_prints_provenance_the_table_and_parity(cli, tiny, tmp_path):
    out = tmp_path / "run"
    run = cli("eval", "--local", *tiny.flags(limit=2), "--out", out)
    result = cli("report", out)
    assert result.exit_code == 0
    assert "run_id: run" in result.stdout
    assert "status: complete" in result.stdout
    assert (
        "config.decode: draft_gamma=0.0, gamma=0.02, gate=0.0, head=full, layerskip_drafts=4, max_drafts=5, "
        "max_new_tokens=10, medusa_gamma=0.0, ngram_store=True" in result.stdout
    )
    table = run.stdout[run.stdout.index("task ") : run.stdout.index("tables: ")]
    assert table.splitlines()[1:] == result.stdout[result.stdout.index("task ") :].splitlines()[1:]
    assert "parity 2/2, logits 2/2" in result.stdout


def test_report_says_of_a_run_whose_driver_was_killed_that_it_is_interrupted(cli, tiny, tmp_path):
    out = tmp_path / "run"
    cli("eval", "--local", *tiny.flags(limit=2), "--out", out)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"status": "running"}))
    assert "status: interrupted: no driver is alive; the same command continues\n" in cli("report", out).stdout


@pytest.mark.parametrize("command", ["report", "verify"])
def test_a_folder_that_is_no_run_is_one_line(usage_error, command, tiny, tmp_path):
    for folder in (tmp_path, tmp_path / "none", tiny.model):
        assert f"{str(folder)!r} is not a run folder" in usage_error(command, folder)


def test_heads_trained_on_the_command_line_decode_exactly(cli, tiny, tmp_path):
    heads = tmp_path / "heads"
    flags = [
        "--model",
        tiny.model,
        "--task",
        "jsonl",
        "--data-file",
        tiny.prompts,
        "--dtype",
        "float32",
        "--threads",
        1,
    ]
    train = ["train-heads", *flags, "--exits", "1,3", "--max-new-tokens", 8, "--epochs", 2, "--out", heads]
    result = cli(*train)
    assert result.exit_code == 0, result.stderr
    assert "outputs: 5/5 prompts" in result.stdout
    assert result.stdout.endswith(f"heads: {heads}\n")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert {row[0] for row in rows if row and row[0] in "123" and row[1].endswith("%")} == {"1", "3"}
    facts = json.loads((heads / FACTS).read_text())
    assert (facts["exits"], facts["base_model"]) == ([1, 3], str(tiny.model))

    again = cli(*train)
    assert again.exit_code == 0
    assert "outputs: reusing 5 of part-00000.parquet" in again.stdout

    result = cli("eval", "--local", *tiny.flags(heads=heads), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 5/5, logits 5/5" in result.stdout
    adadecode = [row for row in read_samples(tmp_path / "run").to_pylist() if row["method"] == "adadecode"]
    assert all(row["exits"] == [1, 3] for row in adadecode)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--exits", "4"], "exit layers [4] must increase and lie in 1..3 for a model of 4 layers"),
        (["--exits", "3,1"], "exit layers"),
        (["--limit", "1"], "--limit 1: "),
        (["--held-out", "1"], "--held-out 1.0: "),
        (["--task", "mmlu"], "--task mmlu: unknown task"),
        (["--learning-rate", "0"], "--learning-rate 0.0: "),
        (["--kind", "eagle"], "--kind 'eagle': "),
        (["--rank", "4"], "--rank 4: only heads of --kind low-rank have one, not transform; drop it"),
        (["--kind", "shortlist", "--kl-top-k", "4"], "--kl-top-k 4: --kind shortlist trains on no such KL; drop it"),
        (["--kind", "original", "--epochs", "4"], "--kind original trains nothing: drop --epochs"),
        (["--kl-top-k", "4000"], "--kl-top-k 4000: the vocabulary has 97 tokens; give 1..97"),
        (
            ["--kernels", "compile"],
            "--kernels compile: outputs are made by native kernels or by transformers; use auto",
        ),
        (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: without --workers no cluster is used"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_bad_training_flags_are_one_line(usage_error, tiny, flags, message, tmp_path):
    common = ["--model", tiny.model, "--task", "jsonl", "--data-file", tiny.prompts, "--threads", 1]
    assert message in usage_error("train-heads", *common, "--out", tmp_path / "heads", *flags)


def test_training_needs_two_prompts_and_a_folder(usage_error, tiny, tmp_path):
    common = ["train-heads", "--model", tiny.model, "--task", "jsonl", "--threads", 1]
    one = write_prompts(tmp_path / "one.jsonl", ["w5"])
    assert "heads need at least 2" in usage_error(*common, "--data-file", one, "--out", tmp_path / "heads")
    assert "Missing option '--out'" in usage_error(*common, "--data-file", tiny.prompts)
    (tmp_path / "file").write_text("")
    line = usage_error(*common, "--data-file", tiny.prompts, "--out", tmp_path / "file")
    assert "cannot be made a folder (File exists): choose another folder" in line


def test_submit_needs_a_folder_every_node_sees(usage_error):
    assert "--out is missing" in usage_error("submit", "eval", "--limit", "2")
    assert "--out needs a folder" in usage_error("submit", "eval", "--out")
    assert "--out is missing" in usage_error("submit", "train-heads", "--task", "gsm8k")
    assert "--out is missing" in usage_error("submit", "sweep", "--gammas", "0.5,0.6")
    assert "--out is missing" in usage_error("submit", "tune", "--task", "gsm8k")
    assert "'bench' is not one of 'eval', 'sweep', 'train-heads', 'tune', 'certify'" in usage_error("submit", "bench")


def test_help_and_version_cost_nothing(cli):
    assert __version__ in cli("--version").stdout
    result = cli("--help")
    assert result.exit_code == 0
    assert "0 ok, 1 the run failed, 2 usage, 3 parity mismatch" in " ".join(result.stdout.split())
    assert "No such command 'evaluate'" in cli("evaluate").stderr
    assert cli("evaluate").exit_code == 2
