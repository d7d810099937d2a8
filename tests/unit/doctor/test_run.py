"""A run that is looked at here: files, heads, memory, rows and the run folder, with a fault planted for each line."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from adadecode.doctor.checks import CHECKS, Check, examine
from adadecode.doctor.loaded import one_round
from adadecode.doctor.run_folder import answer, folder, is_answered, left_at, new_name
from adadecode.doctor.sources import weights_finding
from adadecode.doctor.subject import Subject
from adadecode.engine.decode import decode
from adadecode.engine.policy import make_policy
from adadecode.errors import UsageError
from adadecode.kernels.eager import EagerStep
from adadecode.model.files import ModelFiles
from adadecode.model.weight_files import WeightFiles, bytes_of_weights, find_weights
from adadecode.settings import EvalConfig, build_settings
from tests.folders import save_tiny_heads, save_tiny_model
from tests.model_folders import WEIGHTS, edit


def subject(tiny, tmp_path: Path, **changed: object) -> Subject:
    """A quick float32 run of the tiny model."""
    flags = {
        "model": str(tiny.model),
        "heads": str(tiny.heads),
        "task": "jsonl",
        "data_file": str(tiny.prompts),
        "dtype": "float32",
        "kernels": "eager",
        "threads": 1,
        "max_new_tokens": 10,
    }
    return Subject(build_settings(EvalConfig, None, flags | changed), str(tmp_path / "run"))


def checks(*names: str) -> list[Check]:
    """Those of the table with these names, whatever they come after."""
    return [replace(check, after=()) for check in CHECKS if check.name in names]


def problems(found) -> list[str]:
    """The lines that are not ok, less those that were not tried because of them."""
    return [finding.line() for finding in found if finding.status not in ("ok", "not tried")]


def test_a_run_that_will_do_is_ok_in_every_line_and_leaves_nothing(tiny, tmp_path, cli):
    flags = tiny.flags(out=tmp_path / "deep" / "run", methods="vanilla,vanilla-w1,adadecode")
    result = cli("doctor", "--local", *flags)
    lines = result.stdout.splitlines()
    assert result.exit_code == 0, result.stdout
    assert {line.partition(":")[0] for line in lines} == {
        f"ok         {check.name}" for check in CHECKS if check.name != "graphs"
    }
    assert list(tmp_path.iterdir()) == []
    assert "exits 1,2" in result.stdout
    assert "adadecode with the tokens and logits of vanilla" in result.stdout


def test_heads_of_another_model_are_one_line_and_exit_code_2(tiny, tmp_path, cli):
    other = save_tiny_model(tmp_path / "other", seed=1)
    result = cli("doctor", "--local", *tiny.flags(model=other, kernels="eager"), "--out", tmp_path / "run")
    assert result.exit_code == 2
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("will fail")]
    assert f"exits: --heads '{tiny.heads}': made for 'tiny' with weights" in line
    assert "train heads for this model" in line
    assert "not tried  methods: it needs exits" in result.stdout


def test_heads_of_another_width_are_told_before_anything_is_loaded(tiny, tmp_path):
    wide = save_tiny_model(tmp_path / "wide", hidden_size=48, head_dim=12)
    heads = save_tiny_heads(tmp_path / "heads", wide, (1,))
    found = list(examine(subject(tiny, tmp_path, heads=str(heads)), CHECKS))
    (line,) = problems(found)
    assert line.startswith(
        f"will fail  heads: --heads '{heads}': made for 'tiny' of width 48, this model's is 32: train"
    )


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"model": "nowhere/at/all"}, "will fail  files: --model 'nowhere/at/all' cannot be loaded: there is no such"),
        ({"data_file": "/no/such.jsonl"}, "will fail  data: /no/such.jsonl: no such file"),
        ({"heads": "/no/heads"}, "will fail  heads: --heads '/no/heads'"),
        ({"exits": (3,)}, "will fail  heads: --exits 3: there are no heads at [3]"),
        ({"kernels": "native", "dtype": "float16"}, "will fail  kernels: --kernels native: only on a CPU"),
    ],
)
def test_what_cannot_be_used_is_one_line(changed, line, tiny, tmp_path):
    names = [check.name for check in CHECKS]
    until = names.index(line.removeprefix("will fail  ").partition(":")[0])
    (found,) = problems(examine(subject(tiny, tmp_path, **changed), CHECKS[: until + 1]))
    assert found.startswith(line)


def test_a_family_that_is_not_decoded_and_weights_that_are_not_there_are_told(tiny, tmp_path):
    other = shutil.copytree(tiny.model, tmp_path / "other")
    edit(other, "config.json", model_type="mymodel")
    (line,) = problems(examine(subject(tiny, tmp_path, model=str(other))))
    assert "family: model type 'mymodel': its layers are not known to the engine; supported are llama" in line
    (other / WEIGHTS).unlink()
    (line,) = problems(examine(subject(tiny, tmp_path, model=str(other))))
    assert "will fail  files: " in line
    assert "it has no model.safetensors and no index" in line


def test_weights_to_fetch_must_fit_the_caches_disk():
    files = ModelFiles("m/large", "m/large")
    assert weights_finding("--model", files, WeightFiles("hub", 10**9, 2 * 10**9)).status == "ok"
    found = weights_finding("--model", files, WeightFiles("hub", 16 * 10**9, 2 * 10**9))
    assert found.status == "will fail"
    assert "of 16.0 GB are fetched from the hub, and its cache's disk has 2.0 GB free: make room" in found.text()


def test_weights_on_the_hub_are_those_that_would_be_fetched_and_pickled_ones_are_refused():
    one, parts = (
        {"model.safetensors": 7},
        {"model-00001-of-00002.safetensors": 3, "model-00002-of-00002.safetensors": 4},
    )
    index = {"model.safetensors.index.json": 1}
    others = {"consolidated.safetensors": 7, "onnx/model.onnx": 9, "pytorch_model.bin": 7}
    assert bytes_of_weights(one | others) == bytes_of_weights(parts | index | others) == 7
    assert bytes_of_weights({"model.safetensors": 0}) is None, "a hub that does not say"
    with pytest.raises(ValueError, match=r"its weights are pickled \(pytorch_model.bin\), and a pickle may hold code"):
        bytes_of_weights({"config.json": 1, "pytorch_model.bin": 7})
    with pytest.raises(ValueError, match=r"the hub has no model.safetensors of it"):
        bytes_of_weights({"config.json": 1, "tf_model.h5": 7})


def test_weights_that_are_not_all_in_the_cache_need_a_hub_that_answers(tiny, tmp_path, monkeypatch):
    cached = shutil.copytree(tiny.model, tmp_path / "cached")
    monkeypatch.setattr("adadecode.model.weight_files.on_this_machine", lambda *_: str(cached))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    files = ModelFiles("m/part", "m/part")
    assert find_weights(files) == WeightFiles("cache", (cached / WEIGHTS).stat().st_size)
    (cached / WEIGHTS).unlink()
    with pytest.raises(
        Exception, match=r"'m/part' cannot be loaded: its weights are not all in the hub's cache, and the"
    ):
        find_weights(files)


def test_too_little_memory_is_told_and_the_model_is_not_loaded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("adadecode.doctor.memory.free_host", lambda: 1_000_000)
    looked = subject(tiny, tmp_path)
    found = list(examine(looked))
    (line,) = problems(found)
    assert line.startswith("will fail  memory: about 0.5 GB needed (weights ")
    assert looked.loaded is None
    assert [finding.check for finding in found if finding.status == "not tried"] == [
        "model", "rows", "ties", "exits", "graphs", "methods",
    ]  # fmt: skip


def test_what_is_needed_is_what_the_model_takes_when_it_is_loaded(tiny, tmp_path):
    from adadecode.doctor.memory import needed

    looked = subject(tiny, tmp_path, kernels="auto")
    needs = needed(looked)
    assert needs["weights"] == sum(p.nbytes for p in looked.model.lm.parameters())
    columns = looked.model.num_columns(looked.num_positions)
    assert needs["cache"] == columns * looked.model.weights.column_bytes


def test_what_a_worker_of_two_gpus_needs_is_divided_between_them(tiny, tmp_path):
    from adadecode.doctor.memory import CUDA_BYTES, GRAPHS, needed, on_each_gpu, sizes_of

    looked = subject(tiny, tmp_path, device="cuda", gpus_per_worker=2)
    needs, own = needed(looked), sizes_of(looked)["--model"]
    home, other = on_each_gpu(looked, needs)
    assert other.keys() == {"weights", "cache", GRAPHS}
    assert home[GRAPHS] == other[GRAPHS] == CUDA_BYTES
    assert {name: home[name] + other.get(name, 0) for name in needs if name != GRAPHS} == {
        name: num_bytes for name, num_bytes in needs.items() if name != GRAPHS
    }
    num_layers = len(own.layers)
    assert other["weights"] % own.layers[0] == 0
    assert other["cache"] * num_layers == needs["cache"] * (other["weights"] // own.layers[0])
    with pytest.raises(UsageError, match=rf"--gpus-per-worker 60: the model has {num_layers} layers"):
        on_each_gpu(subject(tiny, tmp_path, device="cuda", gpus_per_worker=60), needs)
    assert on_each_gpu(subject(tiny, tmp_path, device="cuda"), needs) == [needs]


def test_on_a_gpu_weights_count_on_the_host_only_where_they_are_not_mapped(tiny, tmp_path, monkeypatch):
    from adadecode.doctor.memory import PROCESS_BYTES, memory, sizes_of

    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (80 * 10**9, 80 * 10**9))
    for dtype, is_mapped in (("float32", True), ("bfloat16", False)):
        looked = subject(tiny, tmp_path, device="cuda", dtype=dtype)
        looked.num_workers = 3
        needs = PROCESS_BYTES + (0 if is_mapped else sizes_of(looked)["--model"].weights)
        statuses = {}
        for free in (3 * needs - 1, 4 * PROCESS_BYTES):
            monkeypatch.setattr("adadecode.doctor.memory.free_host", lambda free=free: free)
            gpu, host = memory(looked)
            statuses[free] = host.status
            assert (gpu.check, gpu.status, host.check) == ("GPU memory", "ok", "memory")
            assert ("weights on their way" in host.found) is not is_mapped
        assert list(statuses.values()) == ["will fail", "ok"]


def test_only_graphs_keep_two_caches(tiny, tmp_path):
    from adadecode.doctor.memory import needed

    eager, graphs = (needed(subject(tiny, tmp_path, device="cuda", kernels=kernels)) for kernels in ("eager", "graphs"))
    assert graphs["cache"] == 2 * eager["cache"]


def test_rows_that_depend_on_each_other_are_found_on_the_loaded_model(tiny, tmp_path):
    looked = subject(tiny, tmp_path)
    plain = looked.model.steps.layer_step

    def leaky(weights, shape, hidden, *rest):
        return plain(weights, shape, hidden, *rest) + hidden.mean()

    looked.model.steps.layer_step = leaky
    (line,) = problems(examine(looked))
    assert line.startswith("will fail  rows: at W = 8 and S = 64")
    assert "try another --threads" in line


def test_every_number_of_rows_is_tried_on_the_loaded_model(tiny, tmp_path):
    looked = subject(tiny, tmp_path)
    plain = looked.model.steps.layer_step

    def odd_among_five(weights, shape, hidden, rotary, columns, mask, keys, values):
        out = plain(weights, shape, hidden, rotary, columns, mask, keys, values)
        return out * 1.5 if int((columns != keys.shape[1] - 1).sum()) == 5 else out

    looked.model.steps.layer_step = odd_among_five
    (line,) = problems(examine(looked, checks("model", "rows")))
    assert "will fail  rows: " in line
    assert "a row's bits depend on how many there are (slot 0 of 5 rows differs from a row alone)" in line


def test_a_head_that_takes_another_than_the_lowest_of_equal_logits_is_found(tiny, tmp_path, monkeypatch):
    verdicts = EagerStep.verdicts

    def last_of_equals(step, slots=slice(None)):
        found = verdicts(step, slots)
        found[0] = step.logits.shape[1] - 1 - step.logits[slots].flip(1).argmax(dim=-1)
        return found

    looked = subject(tiny, tmp_path)
    monkeypatch.setattr(EagerStep, "verdicts", last_of_equals)
    (line,) = problems(examine(looked, checks("ties")))
    assert line.startswith("will fail  ties: at W = 8 in torch.float32 the argmax of 1 rows takes token ")


def test_no_room_for_the_head_in_which_ties_are_planted_is_a_warning(tiny, tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.05 GiB")

    monkeypatch.setattr("adadecode.doctor.loaded.check_ties", full)
    (line,) = problems(examine(subject(tiny, tmp_path), checks("ties")))
    assert line.startswith("warning    ties: there is no room for a second LM head")


def test_a_method_with_other_tokens_or_logits_than_vanilla_is_found(tiny, tmp_path, monkeypatch):
    def altered(loaded, method, *rest):
        found = decode(loaded, method, *rest)
        return found._replace(logits=found.logits + 1) if method.name == "adadecode" else found

    looked = subject(tiny, tmp_path)
    monkeypatch.setattr("adadecode.doctor.loaded.decode", altered)
    (line,) = problems(examine(looked, checks("methods")))
    assert line.startswith("will fail  methods: adadecode gives other logits than vanilla for a short prompt: ")


def test_what_is_odd_about_a_models_files_is_a_warning(tiny, tmp_path):
    other = shutil.copytree(tiny.model, tmp_path / "other")
    tensors = load_file(other / WEIGHTS)
    save_file(tensors | {"model.extra.weight": tensors["model.norm.weight"].clone()}, other / WEIGHTS)
    (line,) = problems(examine(subject(tiny, tmp_path, model=str(other)), checks("model")))
    assert line.startswith(
        "warning    model: in the checkpoint and in no layer that config.json describes: model.extra"
    )


def test_a_disk_that_is_nearly_full_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    (found,) = folder(str(tmp_path / "run"))
    assert found.line().startswith("warning    run folder: ")
    assert "its disk has 3 MB left: make room" in found.text()


def test_a_run_folder_that_cannot_be_made_is_one_line(tiny, tmp_path):
    looked = subject(tiny, tmp_path)
    (tmp_path / "run").write_text("in the way")
    (line,) = problems(examine(looked, [check for check in CHECKS if check.name == "run folder"]))
    assert line.startswith(f"will fail  run folder: '{tmp_path / 'run'}")
    assert "a file is in the way: give a run's folder" in line


def test_a_folder_that_two_do_not_share_is_told_apart_and_left_as_it_was(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with left_at(str(ours)) as left:
        name = new_name()
        assert answer(str(theirs), left, name) == f"the run folder {theirs} is not the driver's"
        assert not theirs.exists(), "nothing is written to another folder"
        assert not is_answered(str(ours), name)
        assert answer(str(ours), left, name) is None
        assert is_answered(str(ours), name)
        assert [file.name for file in ours.iterdir()] == [left]
    assert not ours.exists()
    ours.mkdir()
    (ours / "run.json").write_text("{}")
    with left_at(str(ours)):
        pass
    assert [file.name for file in ours.iterdir()] == ["run.json"]


def test_a_round_runs_through_every_segment_and_test_of_the_policy(tiny, tmp_path):
    """On CUDA each becomes a graph (tests/gpu); here they are called."""
    looked = subject(tiny, tmp_path)
    heads = looked.heads("jsonl")
    seen = []
    run = EagerStep.run
    policy = make_policy(looked.config.decode, heads.exits, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EagerStep, "run", lambda step, *segment: (seen.append(segment), run(step, *segment)))
        one_round(looked.model, policy, list(heads.tests), 40)
    assert seen == [(0, 1, 0, 1), (0, 1, 1, 2), (0, 1, 2, 4)]
