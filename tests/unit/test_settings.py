"""Settings from a YAML file and flags: flags win, and a bad value is one line with its flag's name."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from adadecode.cli.options import settings_in
from adadecode.errors import UsageError
from adadecode.settings import (
    DRAWN_BEFORE,
    READ_BEFORE,
    STOPPED_BEFORE,
    BenchConfig,
    CertifyConfig,
    DecodeSettings,
    EvalConfig,
    GenerateConfig,
    RivalSettings,
    Settings,
    TrainConfig,
    TuneConfig,
    build_settings,
    fingerprint_of,
    flag_name,
    members,
    read_policy,
    settings_of,
)


def yaml(folder: Path, text: str | bytes) -> Path:
    file = folder / "settings.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refusal(kind: type[Settings] = EvalConfig, file: Path | None = None, **flags: object) -> str:
    with pytest.raises(UsageError) as caught:
        build_settings(kind, file, flags)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_defaults_are_the_embedded_demo_with_its_own_policy():
    config = build_settings(EvalConfig, None, {})
    assert (config.model, config.task, config.dtype) == ("demo", "demo", "bfloat16")
    assert config == EvalConfig(decode=DecodeSettings(policy="demo", **read_policy("demo")))
    assert config.decode.ngram is not None
    assert config.methods == ("vanilla", "vanilla-w1", "adadecode")


def test_the_papers_policy_is_the_default_of_other_models():
    config = build_settings(EvalConfig, None, {"model": "some/model"})
    assert config.decode == DecodeSettings() == build_settings(EvalConfig, None, {"policy": "paper"}).decode
    given = {
        "policy": "paper",
        "gamma": 0.75,
        "exits": None,
        "stop": "token",
        "max_drafts": 5,
        "head": "full",
        "gate": 0.0,
    }
    rivals = {
        "layerskip_exit": None,
        "layerskip_drafts": 4,
        "draft_model": None,
        "draft_revision": None,
        "draft_gamma": 0.0,
        "medusa_heads": None,
        "medusa_gamma": 0.0,
        "skip_layers": None,
    }
    assert config.decode.model_dump() == {
        **given,
        "reject": None,
        "ngram": None,
        "ngram_store": True,
        "max_new_tokens": 512,
        **rivals,
    }


def test_a_setting_that_came_later_leaves_the_fingerprint_as_it_was_until_it_is_changed():
    """So a run of an earlier version is finished by the command that began it."""
    config = EvalConfig()
    before = config.model_dump(mode="json")
    assert before["decode"].pop("ngram_store") is True
    for name in RivalSettings.model_fields:
        before["decode"].pop(name)
    assert [before.pop(name) for name in READ_BEFORE] == [None, 0, None, None]
    assert [before.pop(name) for name in STOPPED_BEFORE] == [None, False]
    assert [before.pop(name) for name in DRAWN_BEFORE] == [0.0, 1.0, 0, 0.0, 0]
    assert fingerprint_of(before, {}) == config.fingerprint()
    changed = [
        {"decode": {"ngram_store": False}},
        {"methods": "vanilla,layerskip"},
        {"methods": "vanilla,layerskip", "decode": {"layerskip_exit": 4}},
        {"shuffle_seed": 0},
        {"temperature": 0.7},
        {"temperature": 0.7, "sampling_seed": 1},
        {"num_shots": 1},
        {"num_shots": 1, "shots_file": "shots.jsonl"},
        {"system_prompt": "Be brief."},
        {"stop_strings": ["\n"]},
        {"stop_strings": ["\n", "Question:"]},
        {"task_stops": True},
    ]
    prints = {EvalConfig.model_validate(settings).fingerprint() for settings in changed}
    assert len(prints - {config.fingerprint()}) == len(changed)


def test_a_file_of_shots_without_their_number_is_one_line():
    with pytest.raises(
        UsageError, match=r"--shots-file s\.jsonl: without --num-shots none of it is shown; say how many"
    ):
        build_settings(EvalConfig, None, {"shots_file": "s.jsonl"})


def test_flags_and_files_win_over_the_policy(tmp_path):
    policy = yaml(tmp_path, "gamma: 0.3\nmax_drafts: 7\nngram: 0.4\n")
    config = build_settings(EvalConfig, None, {"policy": str(policy), "gamma": 0.6})
    assert (config.decode.gamma, config.decode.max_drafts, config.decode.ngram) == (0.6, 7, 0.4)


@pytest.mark.parametrize("content", ["gama: 0.3", "[1, 2]", "- : {"])
def test_a_policy_that_is_no_mapping_of_decode_settings_is_one_line(content, tmp_path):
    with pytest.raises(UsageError, match="--policy") as caught:
        build_settings(EvalConfig, None, {"policy": str(yaml(tmp_path, content))})
    assert "\n" not in str(caught.value)


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = yaml(
        tmp_path, "task: gsm8k\nrepeats: 5\nmethods: [vanilla, adadecode]\ndecode: {gamma: 0.9, exits: [1, 3]}\n"
    )
    config = build_settings(EvalConfig, file, {"repeats": 7, "gamma": 0.1, "limit": 3, "task": None})
    assert (config.task, config.repeats, config.limit) == ("gsm8k", 7, 3)
    assert config.methods == ("vanilla", "adadecode")
    assert (config.decode.gamma, config.decode.exits, config.decode.max_drafts) == (0.1, (1, 3), 5)


def test_what_decode_settings_leave_open_comes_from_the_models_policy_however_they_are_given():
    given = [
        build_settings(EvalConfig, None, {"max_new_tokens": 96}),
        EvalConfig(decode={"max_new_tokens": 96}),
        EvalConfig(decode=DecodeSettings(max_new_tokens=96)),
    ]
    assert given[0] == given[1] == given[2]
    assert (given[0].decode.policy, given[0].decode.max_new_tokens) == ("demo", 96)
    assert EvalConfig(decode=DecodeSettings(policy="paper")).decode == DecodeSettings()
    assert EvalConfig(model="another", decode=DecodeSettings(gamma=0.5)).decode.head == "full"


def test_a_bench_takes_the_public_decode_settings_and_keeps_its_own_length():
    config = BenchConfig(decode=DecodeSettings(gamma=0.5))
    assert (config.decode.gamma, config.decode.max_new_tokens) == (0.5, 128)


def test_one_file_serves_an_evaluation_and_a_single_prompt(tmp_path):
    file = yaml(tmp_path, "task: demo\nworkers: 2\ngamma: 0.9\nmethods: [vanilla, adadecode]\n")
    assert build_settings(GenerateConfig, file, {}, beside=EvalConfig).decode.gamma == 0.9
    assert "there is no setting `" in refusal(GenerateConfig, file)
    with pytest.raises(UsageError, match="--domain 'art': "):
        build_settings(GenerateConfig, file, {"domain": "art"}, beside=EvalConfig)


def test_settings_cannot_be_changed():
    config = EvalConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.limit = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.decode.gamma = 0.1


def test_settings_come_back_from_their_json():
    config = EvalConfig(decode={"exits": (1, 2), "gamma": 0.3}, methods=("vanilla",), limit=4)
    assert EvalConfig.model_validate_json(json.dumps(config.model_dump(mode="json"))) == config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"gamma": -0.1}, "--gamma -0.1: the exit threshold must lie in [0, 1]"),
        ({"gamma": 1.1}, "--gamma 1.1: the exit threshold must lie in [0, 1]"),
        ({"gamma": float("nan")}, "--gamma nan: "),
        ({"exits": (4, 2)}, "--exits 4,2: exit layers must increase and lie in 1..L-1, such as 4,8,12"),
        ({"exits": (2, 2)}, "--exits 2,2: exit layers must increase"),
        ({"exits": (0,)}, "--exits 0: exit layers must increase"),
        ({"max_drafts": -1}, "--max-drafts -1: Input should be greater than or equal to 0"),
        ({"max_drafts": 65}, "--max-drafts 65: Input should be less than or equal to 64"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0: Input should be greater than or equal to 1"),
        ({"methods": ("adadecode",)}, "--methods adadecode: methods must be distinct and include vanilla"),
        ({"methods": ("vanilla", "vanilla")}, "--methods vanilla,vanilla: methods must be distinct"),
        ({"methods": ("vanilla", "eagle")}, "--methods 'eagle': Input should be 'vanilla', 'vanilla-w1', "),
        ({"limit": 0}, "--limit 0: "),
        ({"repeats": 0}, "--repeats 0: "),
        ({"warmup": -1}, "--warmup -1: "),
        ({"shard_size": 0}, "--shard-size 0: "),
        ({"workers": 0}, "--workers 0: "),
        ({"threads": 0}, "--threads 0: "),
        (
            {"max_errors": "-1"},
            "--max-errors '-1': give the samples that may fail as a number from 0 on, or as 0% to 100%",
        ),
        ({"max_errors": "101%"}, "--max-errors '101%': give the samples"),
        ({"max_errors": "100.5%"}, "--max-errors '100.5%': give the samples"),
        ({"max_errors": "5 %"}, "--max-errors '5 %': give the samples"),
        ({"max_errors": "0.5"}, "--max-errors '0.5': give the samples"),
        ({"max_errors": "٥%"}, "--max-errors '٥%': give the samples"),
        ({"max_errors": ""}, "--max-errors '': empty text is no value of it"),
        ({"max_errors": -1}, "--max-errors -1: give the samples"),
        ({"max_errors": 0.5}, "--max-errors 0.5: Input should be a valid string"),
        ({"max_errors": True}, "--max-errors True: true and false mean nothing here"),
        ({"dtype": "int8"}, "--dtype 'int8': Input should be 'float32', 'bfloat16' or 'float16'"),
        ({"device": "tpu"}, "--device 'tpu': Input should be 'cpu' or 'cuda'"),
        ({"local": True, "workers": 2}, "a local run has one worker and no cluster: drop --local, or --workers"),
        ({"local": True, "address": "auto"}, "a local run has one worker and no cluster: drop --local, or --workers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_value_out_of_range_is_one_line_with_flag_and_value(flags, message):
    assert message in refusal(**flags)


REQUIRED = {TrainConfig: {"task": "gsm8k"}, CertifyConfig: {"baseline": "http://a", "candidate": "http://b"}}

TEXTS = [
    (kind, setting.name)
    for kind in (BenchConfig, CertifyConfig, EvalConfig, GenerateConfig, TrainConfig, TuneConfig)
    for setting in settings_in(kind)
    if str in members(setting.field.annotation)
]


@pytest.mark.parametrize("text", ["", " "])
@pytest.mark.parametrize(("kind", "name"), TEXTS)
def test_empty_text_is_not_taken_for_a_setting_that_is_left_out(kind, name, text):
    flags = REQUIRED.get(kind, {})
    line = refusal(kind, None, **{**flags, name: text})
    assert line.startswith(f"{flag_name(name, field_of(kind, name))} {text!r}: ")
    assert "leave it out" in line


NUMBERS = [
    (kind, setting.name)
    for kind in (BenchConfig, CertifyConfig, EvalConfig, GenerateConfig, TrainConfig, TuneConfig)
    for setting in settings_in(kind)
    if {int, float, tuple[int, ...]} & set(members(setting.field.annotation))
]


@pytest.mark.parametrize("value", [10**30, -(10**30), "9" * 30])
@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_every_number_has_a_least_and_a_largest_value(kind, name, value):
    flags = REQUIRED.get(kind, {})
    given = (value,) if name == "exits" and isinstance(value, int) else value
    assert refusal(kind, None, **{**flags, name: given}).startswith(f"{flag_name(name, field_of(kind, name))} ")


def field_of(kind, name):
    return next(setting.field for setting in settings_in(kind) if setting.name == name)


@pytest.mark.parametrize("text", ["max_errors: 3\n", "max_errors: '3'\n", "max_errors: 2.5%\n"])
def test_the_number_of_errors_that_may_be_does_not_change_the_run(text, tmp_path):
    config = build_settings(EvalConfig, yaml(tmp_path, text), {})
    assert config.max_errors == ("2.5%" if "%" in text else "3")
    assert config.fingerprint() == build_settings(EvalConfig, None, {}).fingerprint()


def test_two_mistakes_are_both_named_in_the_line():
    assert refusal(repeats="many", limit=0).count("; ") == 1


def test_training_takes_no_decode_settings(tmp_path):
    assert "there is no setting `decode`" in refusal(TrainConfig, yaml(tmp_path, "task: gsm8k\ndecode: {gamma: 0.5}\n"))
    config = build_settings(TrainConfig, yaml(tmp_path, "task: gsm8k\nexits: [1]\n"), {"max_new_tokens": 5})
    assert (config.model, config.exits, config.max_new_tokens) == ("demo", (1,), 5)
    assert build_settings(TrainConfig, yaml(tmp_path, "task: gsm8k\nmodel: m\n"), {"model": None}).model == "m"


def test_training_needs_a_task_named():
    assert refusal(TrainConfig).startswith("--task: Field required")


def test_decode_settings_may_stand_flat_in_the_file_and_flags_win(tmp_path):
    file = yaml(tmp_path, "gamma: 0.5\nmax_drafts: 3\ndecode: {exits: [2, 4]}\n")
    decode = build_settings(EvalConfig, file, {"gamma": 0.6}).decode
    assert (decode.gamma, decode.max_drafts, decode.exits) == (0.6, 3, (2, 4))


@pytest.mark.parametrize(
    "flags", [{"held_out": 0.0}, {"held_out": 1.0}, {"learning_rate": 0.0}, {"epochs": 0}, {"limit": 1}], ids=" ".join
)
def test_training_settings_out_of_range_are_refused(flags):
    assert refusal(TrainConfig, task="gsm8k", **flags).startswith("--" + next(iter(flags)).replace("_", "-"))


def test_a_lossy_method_is_never_a_default():
    assert {"adadecode-unverified"}.isdisjoint(EvalConfig().methods + BenchConfig().methods)


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        (("Question:", "\n\n"), ("Question:", "\n\n")),
        ("a, b", ("a, b",)),  # one, comma and all
        (["none", " "], ("none", " ")),
        (None, None),
    ],
)
def test_stop_strings_are_taken_as_they_stand(given, resolved):
    assert build_settings(EvalConfig, None, {"stop_strings": given}).stop_strings == resolved


def test_stop_strings_of_a_file_are_a_list_or_a_text_and_flags_win(tmp_path):
    for content, strings in (('["\\n\\n", "Question:"]', ("\n\n", "Question:")), ('"a,b "', ("a,b ",)), ("null", None)):
        file = yaml(tmp_path, f"stop_strings: {content}\n")
        assert build_settings(EvalConfig, file, {}).stop_strings == strings
        assert build_settings(EvalConfig, file, {"stop_strings": ("#",)}).stop_strings == ("#",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[""]', "an empty stop string would end every output at once"),
        ('""', "an empty stop string would end every output at once"),
        ("[]", "give at least one, or leave it out"),
        ('["a\\uFFFDb"]', "stands for bytes that are no character"),
        ("[a, [b]]", "should be a valid string"),
        ("{a: b}", "should be a valid tuple"),
    ],
)
def test_a_stop_string_that_cannot_be_is_one_line(content, said, tmp_path):
    with pytest.raises(UsageError, match=said) as caught:
        build_settings(EvalConfig, yaml(tmp_path, f"stop_strings: {content}\n"), {})
    assert "stop_strings" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_method_is_answered_with_the_one_that_was_probably_meant():
    with pytest.raises(
        UsageError, match=r"^--methods .*layer_skip.*: did you mean layerskip\? Input should be 'vanilla', "
    ):
        build_settings(EvalConfig, None, {"methods": ("vanilla", "layer_skip")})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"top_p": 0.9}, "--top-p 0.9: at --temperature 0 nothing is drawn"),
        ({"top_k": 5}, "--top-k 5: at --temperature 0 nothing is drawn"),
        ({"min_p": 0.1}, "--min-p 0.1: at --temperature 0 nothing is drawn"),
        ({"sampling_seed": 1}, "--sampling-seed 1: at --temperature 0 nothing is drawn"),
        ({"temperature": 0.001}, "--temperature 0.001: give 0 for greedy, or one from 0.01 to 10"),
        ({"temperature": -1}, "--temperature -1"),
        ({"temperature": 11}, "--temperature 11"),
        ({"temperature": 1, "top_p": 0}, "--top-p 0"),
        ({"temperature": 1, "top_k": -1}, "--top-k -1"),
        ({"temperature": 1, "min_p": 1.5}, "--min-p 1.5"),
    ],
)
def test_what_draws_nothing_or_cannot_is_refused_in_one_line(given, line):
    for kind in (EvalConfig, GenerateConfig):
        with pytest.raises(UsageError) as error:
            settings_of(kind, given)
        assert line in str(error.value)
        assert "\n" not in str(error.value)
