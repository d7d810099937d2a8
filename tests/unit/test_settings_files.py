"""Files of settings: a value means what its setting takes, and every mistake is one line with its file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

import adadecode
from adadecode.engine.decode import check_can_decode
from adadecode.engine.policy import OneExit, Policy, make_policy
from adadecode.errors import UsageError
from adadecode.methods import METHODS
from adadecode.settings import (
    BenchConfig,
    DecodeSettings,
    EvalConfig,
    GenerateConfig,
    Settings,
    TrainConfig,
    TuneConfig,
    build_settings,
)
from tests.models import tiny_model


def written(folder: Path, text: str | bytes, name: str = "settings.yaml") -> Path:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refusal(file: Path, kind: type[Settings] = EvalConfig, **flags: object) -> str:
    with pytest.raises(UsageError) as caught:
        build_settings(kind, file, flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("revision: 1234567", "revision", "1234567"),
        ("revision: 12e10", "revision", "12e10"),
        ("revision: 2024-10-22", "revision", "2024-10-22"),
        ("revision: no", "revision", "no"),
        ("revision: 0x10", "revision", "0x10"),
        ("revision: ~", "revision", None),
        ("limit: 010", "limit", 10),
        ('limit: "2"', "limit", 2),
        ("limit:", "limit", None),
        ("limit: null", "limit", None),
        ("check_logits: no", "check_logits", False),
        ("check_logits: Off", "check_logits", False),
        ("local: yes", "local", True),
        ("methods: vanilla,adadecode", "methods", ("vanilla", "adadecode")),
        ("methods: vanilla", "methods", ("vanilla",)),
        ("workers: 2", "workers", 2),
        ("workers: auto", "workers", "auto"),
        ("max_errors: 3", "max_errors", "3"),
        ("grace_s: 1e1", "grace_s", 10.0),
    ],
)
def test_a_value_is_what_its_setting_takes(text, name, value, tmp_path):
    assert getattr(build_settings(EvalConfig, written(tmp_path, text), {}), name) == value


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("exits: 4,8,12", {"exits": (4, 8, 12)}),
        ("exits: [4, 8, 12]", {"exits": (4, 8, 12)}),
        ("exits: 8", {"exits": (8,)}),
        ("gamma: 0.7, 0.75", {"gamma": (0.7, 0.75)}),
        ("gamma: [0.7, 0.75]", {"gamma": (0.7, 0.75)}),
        ("gamma: 7e-1", {"gamma": 0.7}),
        ("ngram: null", {"ngram": None}),
        ("decode: {<<: {gamma: 0.5, gate: 0.1}, gamma: 0.25}", {"gamma": 0.25, "gate": 0.1}),
    ],
)
def test_decode_settings_may_be_written_as_their_flags_are(text, changed, tmp_path):
    found = build_settings(EvalConfig, written(tmp_path, f"policy: paper\n{text}"), {})
    if "decode" not in text:
        assert found.decode == DecodeSettings().model_copy(update=changed)
    assert {name: getattr(found.decode, name) for name in changed} == changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # booleans where none is meant: n-gram drafts at every confidence, a limit of 0
        ("a\nngram: no", "line 2: ngram 'no': is no value of it; null means no n-gram drafts"),
        ("a\nreject: off", "line 2: reject 'off': is no value of it; null means never"),
        ("a\nlimit: no", "line 2: limit 'no': is no value of it; null means all"),
        ("a\nlimit: None", "line 2: limit 'None': is no value of it; null means all"),
        ("a\nrepeats: yes", "line 2: repeats 'yes': Input should be a valid integer"),
        ("a\ngamma: on", "line 2: gamma 'on': Input should be a valid number"),
        # what only YAML would read into it
        ("a\nlimit: 1:30", "line 2: limit '1:30': Input should be a valid integer"),
        ("a\ndeadline_s: .inf", "line 2: deadline_s '.inf': Input should be a valid number"),
        ("a\ndeadline_s: inf", "line 2: deadline_s 'inf': Input should be a finite number"),
        ("a\ngamma: nan", "line 2: gamma 'nan': "),
        # keys
        ("a\na: gsm8k", "line 2: cannot be read as YAML: `a` stands twice, in line 1 too; keep one"),
        ("decode:\n  gamma: 1\n  gamma: 0", "line 3: cannot be read as YAML: `gamma` stands twice, in line 2 too"),
        ("gamma: 0.3\ndecode:\n  gamma: 0.9", "line 1: `gamma` stands in `decode` too"),
        (
            "task: demo\nmax-new-tokens: 8",
            "line 2: there is no setting `max-new-tokens`; did you mean `max_new_tokens`?",
        ),
        ("limitt: 8", "line 1: there is no setting `limitt`; did you mean `limit`?"),
        ("Task: demo", "line 1: there is no setting `Task`; did you mean `task`?"),
        ("decode:\n  gama: 0.5", "line 2: there is no setting `gama`; did you mean `gamma`?"),
        ("deadline: 5", "line 1: there is no setting `deadline`; did you mean `deadline_s`?"),
        ("out: results/x", "line 1: there is no setting `out`; it is the flag --out only"),
        ("1: 2", "line 1: there is no setting `1`"),
        ("~: 2", "line 1: cannot be read as YAML: the name of a setting must be text"),
        ("? [a]\n: 2", "line 1: cannot be read as YAML: the name of a setting must be text"),
        # values
        ("max_errors: 0.05", "line 1: max_errors '0.05': give the samples that may fail as a number from 0 on, or as"),
        ("model:", "line 1: model null: Input should be a valid string"),
        ("task: [a, b]", "line 1: task a,b: Input should be a valid string"),
        ("methods: [[vanilla]]", "line 1: methods vanilla: Input should be a valid string"),
        ("exits: [1, x]", "line 1: exits 'x': Input should be a valid integer"),
        ("exits: 1,x", "line 1: exits 'x': Input should be a valid integer"),
        ("repeats: many", "line 1: repeats 'many': "),
        ('task: "\\ud800"', "line 1: task '\\ud800': it has a character that no text has"),
        ('task: "a\\0b"', "line 1: task 'a\\x00b': it has a character that no text has"),
        ("task: {a: b}", "line 1: task a mapping: Input should be a valid string"),
        ("methods: [[[vanilla]]]", "line 1: methods a list: Input should be a valid string"),
        ("device: " + "x" * 500, " ...: Input should be 'cpu' or 'cuda'"),
        # policies
        ("policy: 1", "line 1: policy '1': give paper, demo or a YAML file of decode settings"),
        ("policy:", "line 1: policy null: give paper, demo or a YAML file of decode settings"),
        ("policy: [a]", "line 1: policy a: give paper, demo or a YAML file"),
        # settings that do not go together
        (
            "task: demo\nlocal: yes\n\nworkers: 4",
            "line 2, line 4: a local run has one worker and no cluster: drop --local",
        ),
        (
            "policy: paper\nheads: original\nhead: shortlist",
            "line 1, line 2, line 3: --heads original is the model's own LM head",
        ),
        (
            "decode:\n  policy: paper\n  gate: 0.5\nheads: original",
            "line 2, line 3, line 4: --heads original is the model's own LM head",
        ),
        # the file itself
        ("- task", "expected a mapping of settings"),
        ("gsm8k", "expected a mapping of settings"),
        ("", "expected a mapping of settings"),
        ("# nothing", "expected a mapping of settings"),
        ("decode: 3", "line 1: `decode` must be a mapping of settings"),
        ("decode:", "line 1: `decode` must be a mapping of settings"),
        ("task: [gsm8k\nseed: }", "line 2: cannot be read as YAML: "),
        ("task: a\n---\ntask: b", "line 2: cannot be read as YAML: expected a single document"),
        ("task: !!python/object/apply:os.getcwd []", "line 1: cannot be read as YAML: tag:yaml.org,2002:python"),
        ("a: &a {b: *a}", "cannot be read as YAML: it is nested too deep"),
        ("<<: {limit: 1}\n<<: {limit: 2}", "line 2: cannot be read as YAML: `<<` stands twice, in line 1 too"),
        ("limitt: 8\nofset: 1", "line 1: there is no setting `limitt`"),
        ("<<: 3", "line 1: cannot be read as YAML: `<<` takes a mapping"),
        ("task: " + "[" * 3000 + "]" * 3000, "cannot be read as YAML: it is nested too deep"),
        (b"\xff\xfe\x00", "cannot be read as YAML: it is not UTF-8 text"),
        (b"task: a\0", "cannot be read as YAML: unacceptable character"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_its_place(text, message, tmp_path):
    if isinstance(text, str) and text.startswith("a\n"):
        text = "task: demo" + text[1:] if "stands twice" not in message else "a: 1" + text[1:]
    file = written(tmp_path, text)
    line = refusal(file)
    assert line.startswith((f"{file}: ", f"{file} line "))
    assert message in line
    assert len(line) < len(str(file)) * 3 + 400


def test_text_that_refers_to_itself_again_and_again_is_read_in_no_time(tmp_path):
    links = "".join(
        f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, after in zip("abcdefgh", "bcdefghi", strict=True)
    )
    line = refusal(written(tmp_path, f"a: &a [x]\n{links}task: *i\n"))
    assert "there is no setting `" in line
    line = refusal(written(tmp_path, f"task: demo\ncells: &a [x]\n{links}limit: *i\n"), TrainConfig)
    assert len(line) < 1000


@pytest.mark.slow
def test_a_policy_that_refers_to_itself_again_and_again_is_a_short_line(tmp_path):
    links = f"[{', '.join(['*x'] * 9)}]"
    for _ in range(5):
        links = f"[{', '.join([links] * 9)}]"
    line = refusal(written(tmp_path, f"policy: [&x [x], {links}]\n"))
    assert "line 1: policy a list: give paper, demo or a YAML file" in line
    assert len(line) < 1000


def test_settings_of_a_file_and_a_flag_that_do_not_go_together_name_the_file(tmp_path):
    file = written(tmp_path, "task: demo\nlocal: yes\n")
    assert refusal(file, workers=4).startswith(f"{file} line 2: a local run has one worker")
    file = written(tmp_path, '{"local": true, "workers": 4}', "settings.json")
    assert refusal(file).startswith(f"{file}: a local run has one worker")
    with pytest.raises(UsageError, match=r"^settings: a local run has one worker"):
        build_settings(EvalConfig, None, {"local": True, "workers": 4})


def test_a_flag_that_replaces_a_bad_value_of_the_file_is_named_as_a_flag(tmp_path):
    file = written(tmp_path, "limit: 0\ndeadline_s: 5\n")
    assert build_settings(EvalConfig, file, {"limit": 3}).limit == 3
    assert refusal(file, limit=-1).startswith("--limit -1: ")
    assert "--deadline -1.0: " in refusal(file, deadline_s=-1.0)


@pytest.mark.parametrize("value", [True, False])
def test_a_program_cannot_pass_a_boolean_for_a_number_either(value):
    for field in ("gamma", "reject", "ngram", "gate", "max_drafts"):
        with pytest.raises(ValueError, match="true and false mean nothing here"):
            DecodeSettings.model_validate({field: value})
    with pytest.raises(ValueError, match="true and false mean nothing here"):
        DecodeSettings.model_validate({"exits": [value, 2]})


def test_a_policy_file_is_read_as_strictly(tmp_path):
    good = written(tmp_path, "exits: 4,8\ngamma: 0.7,0.6\ntuned: {anything: [1, no]}\n", "good.yaml")
    decode = build_settings(EvalConfig, None, {"policy": str(good)}).decode
    assert (decode.exits, decode.gamma) == ((4, 8), (0.7, 0.6))
    for text, message in [
        ("gamma: 0.5\nngram: no\n", "line 2: ngram 'no': is no value of it; null means no n-gram drafts"),
        ("gamma: 0.5\ngamma: 0.6\n", "line 2: cannot be read as YAML: `gamma` stands twice"),
        ("gama: 0.5\n", "line 1: there is no setting `gama`; did you mean `gamma`?"),
        ("gamma: 1.5\n", "line 1: gamma '1.5': the exit threshold must lie in [0, 1]"),
    ]:
        bad = written(tmp_path, text, "bad.yaml")
        with pytest.raises(UsageError) as caught:
            build_settings(EvalConfig, None, {"policy": str(bad)})
        assert str(caught.value).startswith(f"--policy '{bad}': ")
        assert message in str(caught.value)
        place = written(tmp_path, f"task: demo\npolicy: {bad}\n")
        assert refusal(place).startswith(f"{place} line 2: policy '{bad}': ")


def test_the_run_json_of_a_run_repeats_it(tmp_path):
    config = EvalConfig(
        decode={"exits": (1, 2), "gamma": 0.3, "ngram": None}, methods=("vanilla",), limit=4, local=True
    )
    run: dict[str, Any] = {
        "run_id": "r",
        "fingerprint": "f",
        "config": config.model_dump(mode="json"),
        "workers": [{"pid": 1}],
    }
    file = written(tmp_path, json.dumps(run), "run.json")
    assert build_settings(EvalConfig, file, {}) == config
    assert build_settings(EvalConfig, file, {"limit": 2}).limit == 2
    run["config"] = run["config"] | {"gone": 3}
    assert refusal(written(tmp_path, json.dumps(run), "run.json")).startswith(f"{file}: there is no setting `gone`")


@pytest.mark.parametrize("kind", [GenerateConfig, BenchConfig, TuneConfig, TrainConfig])
def test_the_run_json_of_a_run_serves_the_other_commands_and_its_typos_none(tmp_path, kind):
    config = EvalConfig(decode={"gamma": 0.3}, limit=9, local=True, retry_errors=True, threads=2, dtype="float32")
    run: dict[str, Any] = {"run_id": "r", "fingerprint": "f", "config": config.model_dump(mode="json")}
    file = written(tmp_path, json.dumps(run), "run.json")
    taken = build_settings(kind, file, {}, beside=EvalConfig)
    assert (taken.threads, taken.dtype, getattr(taken, "limit", 9)) == (2, "float32", 9)
    for typo in ("retry_error", "gama", "limits"):
        file = written(tmp_path, json.dumps(run | {"config": run["config"] | {typo: 1}}), "run.json")
        with pytest.raises(UsageError, match=f"there is no setting `{typo}`"):
            build_settings(kind, file, {}, beside=EvalConfig)


def run_json(folder: Path, config: EvalConfig, **changed: object) -> Path:
    stored = config.model_dump(mode="json") | changed
    return written(folder, json.dumps({"run_id": "r", "fingerprint": "f", "config": stored}), "run.json")


@pytest.mark.parametrize("is_nested", [True, False])
def test_decode_settings_of_a_file_reach_the_commands_that_have_them_flat(tmp_path, is_nested):
    values = {"policy": "paper", "exits": "4,8", "max_new_tokens": 32, "ngram": 0.5}
    text = "".join(f"{'  ' if is_nested else ''}{name}: {value}\n" for name, value in values.items())
    file = written(tmp_path, f"task: demo\n{'decode:' if is_nested else ''}\n{text}")
    for kind in (TrainConfig, TuneConfig):
        taken = build_settings(kind, file, {}, beside=EvalConfig)
        assert (taken.exits, taken.max_new_tokens) == ((4, 8), 32)
        line = "  ngrams: 0.5\n" if is_nested else "ngrams: 0.5\n"
        typo = written(tmp_path, file.read_text() + line, "typo.yaml")
        with pytest.raises(UsageError, match=r"line 7: there is no setting `ngrams`; did you mean `ngram`\?"):
            build_settings(kind, typo, {}, beside=EvalConfig)


def test_heads_are_not_trained_on_a_cluster_because_a_run_had_one_worker(tmp_path):
    for placed in ({"local": True}, {"workers": "auto"}, {"workers": 3, "address": "head:6379"}):
        taken = build_settings(TrainConfig, run_json(tmp_path, EvalConfig(**placed)), {}, beside=EvalConfig)
        assert (taken.workers, taken.address) == (None, None)
    file = written(tmp_path, "task: demo\nworkers: 2\n")
    assert build_settings(TrainConfig, file, {}, beside=EvalConfig).workers == 2, "which somebody wrote for it"


def test_a_policy_beside_the_run_json_of_a_run_replaces_that_runs_and_keeps_the_length(tmp_path):
    config = EvalConfig(decode={"gamma": 0.3, "max_new_tokens": 40}, limit=3)
    file = run_json(tmp_path, config)
    assert config.decode.policy == "demo"
    taken = build_settings(EvalConfig, file, {"policy": "paper"})
    assert taken.decode == DecodeSettings(max_new_tokens=40)
    assert taken.limit == 3
    taken = build_settings(EvalConfig, file, {"policy": "demo", "gate": 0.25})
    expected = EvalConfig(decode={"policy": "demo", "max_new_tokens": 40, "gate": 0.25})
    assert taken.decode == expected.decode
    assert build_settings(EvalConfig, file, {"gate": 0.25}).decode.gamma == 0.3


def test_a_run_json_is_read_though_its_policys_file_is_gone(tmp_path):
    policy = written(tmp_path, "gamma: 0.4\nngram: 0.5\n", "policy.yaml")
    config = EvalConfig(decode={"policy": str(policy), "gate": 0.1})
    file = run_json(tmp_path, config)
    policy.unlink()
    assert build_settings(EvalConfig, file, {}) == config
    assert build_settings(GenerateConfig, file, {"gamma": 0.9}, beside=EvalConfig).decode.ngram == 0.5
    assert EvalConfig.model_validate(config.model_dump(mode="json")) == config
    old = config.model_dump(mode="json")["decode"]
    del old["reject"]
    assert build_settings(EvalConfig, run_json(tmp_path, config, decode=old), {}) == config


def test_settings_that_the_command_line_gives_leave_the_rest_to_the_policys_file(tmp_path):
    policy = written(tmp_path, "gamma: 0.4\nngram: 0.5\nstop: chain\nngram_store: false\n", "policy.yaml")
    given = DecodeSettings(reject=0.5, ngram=0.25).model_dump(exclude={"policy", "stop", "ngram_store"})
    decode = build_settings(EvalConfig, None, {"policy": str(policy), **given}).decode
    assert (decode.stop, decode.ngram_store, decode.ngram, decode.gamma) == ("chain", False, 0.25, 0.75)


def test_a_policys_name_with_control_characters_is_told_on_one_line_and_escaped(tmp_path):
    for name in ("0\r", "\x1b[2J\n"):
        with pytest.raises(UsageError) as caught:
            build_settings(EvalConfig, None, {"policy": name})
        assert str(caught.value).isprintable(), ascii(str(caught.value))
    odd = written(tmp_path, "gamma: [", "a\nb.yaml")
    with pytest.raises(UsageError) as caught:
        build_settings(EvalConfig, odd, {})
    assert r"a\nb.yaml line" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_policy_without_exits_drafts_by_n_grams_alone(tmp_path):
    policy = written(tmp_path, "exits: []\nngram: 0.5\nhead: shortlist\n", "policy.yaml")
    decode = build_settings(EvalConfig, None, {"policy": str(policy)}).decode
    assert make_policy(decode, (4, 8), 16) == Policy((), (), 5, ngram=0.5, layerskip=OneExit(4, 4))
    for head_exits in ((4, 8), None):
        with pytest.raises(UsageError, match="2 thresholds for the 0 exits"):
            make_policy(decode.model_copy(update={"gamma": (0.5, 0.6)}), head_exits, 16)


def test_a_policy_without_exits_and_n_grams_is_refused_for_what_drafts_by_them_alone(tmp_path):
    policy = str(written(tmp_path, "exits: []\n", "policy.yaml"))
    for method in ("adadecode", "adadecode-unverified"):
        line = rf"^settings: exits \[\]: nothing drafts for {method} without exits and n-grams; give --ngram"
        with pytest.raises(UsageError, match=line):
            build_settings(EvalConfig, None, {"policy": policy, "methods": ("vanilla", method)})
    methods = ("vanilla", "adadecode-never", "ngram", "layerskip", "transformers")
    assert build_settings(EvalConfig, None, {"policy": policy, "methods": methods}).decode.exits == ()
    decode = build_settings(GenerateConfig, None, {"policy": policy}).decode
    with pytest.raises(UsageError, match=r"^exits \[\]: nothing drafts for adadecode"):
        check_can_decode(tiny_model(), [METHODS["adadecode"]], make_policy(decode, None, 4))


@pytest.mark.parametrize("decode", [None, 5, "paper", [1]])
def test_a_program_that_passes_no_mapping_for_decode_is_told(decode):
    with pytest.raises(UsageError, match=r"^decode .*: it must be DecodeSettings or a mapping, such as"):
        adadecode.load("demo", decode=decode)
    with pytest.raises(UsageError, match="there is no setting `1`"):
        adadecode.load("demo", decode={1: 2})


def test_a_json_file_of_settings_is_read_too_and_as_strictly(tmp_path):
    file = written(tmp_path, '{"limit": 3, "decode": {"gamma": [0.5, 0.25]}, "check_logits": false}', "settings.json")
    config = build_settings(BenchConfig, written(tmp_path, '{"limit": 3}', "bench.json"), {})
    assert config.limit == 3
    config = build_settings(EvalConfig, file, {})
    assert (config.limit, config.decode.gamma, config.check_logits) == (3, (0.5, 0.25), False)
    for text, message in [
        ('{"limit": 3, "limit": 4}', "`limit` stands twice"),
        ('{"ngram": false}', "ngram False: true and false mean nothing here; null means no n-gram drafts"),
        ('{"limit": 3', "cannot be read as JSON: "),
        ("[" * 100_000, "cannot be read as JSON: it is nested too deep"),
    ]:
        file = written(tmp_path, text, "bad.json")
        assert refusal(file).startswith(f"{file}: ")
        assert message in refusal(file)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('shots_file: "a\\nb"', r"--shots-file a\nb: without --num-shots none of it is shown"),
        ('draft_model: "\\e[2J"', r"--draft-model \x1b[2J: none of --methods reads it"),
        ('methods: ["vanilla", "a\\r"]', r"a\r"),
    ],
)
def test_a_message_that_quotes_control_characters_is_one_escaped_line(tmp_path, text, shown):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        build_settings(EvalConfig, file, {})
    assert shown in str(refused.value)
    assert str(refused.value).isprintable()
