"""AdaDecode as a library: the lines README shows, and the names that are public."""

import subprocess
import sys
from pathlib import Path

import pytest

import adadecode
from adadecode import api, language_model
from adadecode.errors import UsageError
from adadecode.settings.policy import DECODED_BEFORE
from tests.command_lines import FENCED_BLOCK

ROOT = Path(__file__).parents[2]
# a default of `say`; what `load` and `adadecode generate` share
NOT_EXPORTED = {api: {"silent"}, language_model: {"load_configured"}}


def test_every_public_name_is_there_and_nothing_else_is_public():
    homes = [name for names in adadecode._HOMES.values() for name in names]
    assert sorted(adadecode.__all__) == sorted([*homes, "__version__"])
    assert len(set(adadecode.__all__)) == len(adadecode.__all__)
    for name in adadecode.__all__:
        assert getattr(adadecode, name) is not None, name
    assert set(adadecode.__all__) <= set(dir(adadecode))
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        _ = adadecode.unknown


@pytest.mark.parametrize(
    ("home", "not_exported"), NOT_EXPORTED.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_what_a_home_defines_is_public_but_for_what_serves_the_command_line(home, not_exported):
    defined = {
        name
        for name, value in vars(home).items()
        if getattr(value, "__module__", None) == home.__name__ and not name.startswith("_")
    }
    assert defined - not_exported == set(adadecode._HOMES[home.__name__])
    assert defined >= not_exported


def test_importing_a_public_name_of_the_settings_loads_no_torch():
    code = "import sys, adadecode; adadecode.EvalConfig(limit=3); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "ray", "pyarrow"} & set(loaded.split())


def test_the_five_lines_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (block for language, block in FENCED_BLOCK.findall(readme) if language == "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 6
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert names["out"].text in printed
    assert 1.0 < names["out"].layers_per_token < 16.0
    result = names["result"]
    assert result.exit_code == 0
    assert {row["method"] for row in result.summary.to_pylist()} == {"vanilla", "vanilla-w1", "adadecode"}
    assert (tmp_path / "results" / "first" / "summary.parquet").exists()
    assert printed.count("\n") <= len(names["out"].text.splitlines()) + 1, "the library prints nothing itself"


def test_a_loaded_model_drafts_and_gives_the_tokens_of_vanilla(tiny):
    lm = adadecode.load(str(tiny.model), str(tiny.heads), dtype="float32", threads=1, gamma=0.02)
    ours = lm.generate("w10 w20 w30", max_new_tokens=12)
    vanilla = lm.generate("w10 w20 w30", method="vanilla", max_new_tokens=12)
    assert ours.text == vanilla.text
    assert ours.generation.output_token_ids == vanilla.generation.output_token_ids
    assert ours.generation.num_drafted > 0
    assert vanilla.layers_per_token == 4.0


def test_a_loaded_draft_model_drafts_for_the_method_that_takes_one(tiny):
    lm = adadecode.load(str(tiny.model), draft_model=str(tiny.model), dtype="float32", threads=1)
    vanilla, ours = (lm.generate("w10 w20 w30", method=name, max_new_tokens=12) for name in ("vanilla", "speculative"))
    assert ours.generation.output_token_ids == vanilla.generation.output_token_ids
    assert ours.generation.num_accepted == ours.generation.num_drafted > 0


def test_rows_are_checked_at_each_number_of_columns_that_a_prompt_needs_before_it_is_decoded(tiny, monkeypatch):
    """At 64 and at 1024 positions before any is known; a library that was only asked for those would miss 256 and 320."""
    seen: list[int] = []
    monkeypatch.setattr(
        "adadecode.engine.invariance.check_rows_independent",
        lambda model, width, num_positions: seen.append(model.num_columns(min(*num_positions, model.context_len))),
    )
    lm = adadecode.load(str(tiny.model), dtype="float32", threads=1, kernels="eager")
    at_load = len(seen)
    assert 256 not in seen
    for num_words in (200, 210, 200):
        lm.generate(" ".join(["w7"] * num_words), method="vanilla", max_new_tokens=20)
    assert seen[at_load:] == [256]


def test_without_heads_only_methods_that_need_none_generate(tiny):
    lm = adadecode.load(str(tiny.model), dtype="float32", threads=1)
    assert lm.generate("w5", method="vanilla", max_new_tokens=3).generation.num_rounds == 2
    with pytest.raises(UsageError, match="--heads is missing: model "):
        lm.generate("w5")
    with pytest.raises(UsageError, match=r"method 'eagle': unknown; choose among vanilla, "):
        lm.generate("w5", method="eagle")


@pytest.mark.parametrize("max_new_tokens", [0, -3])
def test_an_output_has_at_least_one_token(tiny, max_new_tokens):
    lm = adadecode.load(str(tiny.model), dtype="float32", threads=1)
    with pytest.raises(UsageError, match=f"max_new_tokens {max_new_tokens}: give at least 1"):
        lm.generate("w5", method="vanilla", max_new_tokens=max_new_tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 2.0}, "--gamma 2.0: "),
        ({"gama": 0.5}, "there is no setting `gama`; did you mean `gamma`?"),
        ({"heads": "none"}, "--heads 'none': "),
    ],
)
def test_a_bad_setting_is_the_line_the_command_line_has(tiny, settings, message):
    with pytest.raises(UsageError, match=message):
        adadecode.load(str(tiny.model), **{"heads": str(tiny.heads), "dtype": "float32", **settings})


def test_the_config_of_a_run_json_is_that_runs_when_its_policy_is_gone_and_of_any_version(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("gamma: 0.3\nstop: chain\n")
    run = adadecode.EvalConfig(decode=adadecode.DecodeSettings(policy=str(policy))).model_dump(mode="json")
    assert (run["decode"]["gamma"], run["decode"]["stop"]) == (0.3, "chain")
    of_before = {name: value for name, value in run["decode"].items() if name not in DECODED_BEFORE}
    assert adadecode.EvalConfig(**{**run, "decode": of_before}).decode.stop == "token", "it had no other then"
    policy.unlink()
    assert adadecode.EvalConfig(**run).model_dump(mode="json") == run
    with pytest.raises(UsageError, match="--policy"):
        adadecode.load(**run["decode"])


def test_an_evaluation_tells_an_observer_and_prints_nothing(tiny, tmp_path, capsys):
    class Heard:
        def __init__(self):
            self.lines, self.outcomes, self.marks = [], [], []

        def on_start(self, progress):
            self.marks.append("start")

        def on_end(self):
            self.marks.append("end")

        def on_closed(self, result):
            self.marks.append(result.exit_code)

        def on_shard(self, outcome):
            self.outcomes.append(outcome)

        def on_workers(self, states):
            raise AssertionError("a local run has no workers")

        def on_lost_worker(self, line):
            raise AssertionError(line)

        def say(self, line):
            self.lines.append(line)

    heard = Heard()
    settings = adadecode.EvalConfig(
        model=str(tiny.model),
        heads=str(tiny.heads),
        task="jsonl",
        data_file=str(tiny.prompts),
        dtype="float32",
        threads=1,
        local=True,
        shard_size=2,
        decode={"max_new_tokens": 6, "gamma": 0.02},
    )
    result = adadecode.evaluate(settings, tmp_path / "run", observer=heard)
    assert (result.exit_code, result.num_missing) == (0, 0)
    assert (heard.marks, len(heard.outcomes)) == (["start", "end", 0], 3)
    (heading,) = heard.lines
    assert "5 samples in 3 shards, 0 done before, 3 to do" in heading
    assert capsys.readouterr().out == ""
