"""Which kind of machine a policy is for, and that a run on another says so."""

import pytest
import torch

from adadecode.cli.main import main
from adadecode.model.machine_kind import MachineKind, cache_bytes, gpu_names, processor_family, tuned_elsewhere
from adadecode.provenance import cpu_name
from adadecode.settings import drawn_otherwise, tuned_for
from tests.folders import save_tiny_heads, save_tiny_model, write_prompts
from tests.models import tiny_model

HERE = MachineKind("AuthenticAMD family 25 model 17", 2, "bfloat16", "cache")


def test_a_policy_for_this_kind_of_machine_or_for_an_unknown_one_says_nothing():
    assert tuned_elsewhere(HERE._asdict(), HERE) == tuned_elsewhere(HERE._asdict() | {"threads": "2"}, HERE) == []
    assert tuned_elsewhere(None, HERE) == []
    assert tuned_elsewhere({"processor": "AMD EPYC"}, HERE) == []


@pytest.mark.parametrize(
    "changed",
    [{"processor": "GenuineIntel family 6 model 85"}, {"threads": 1}, {"dtype": "float32"}, {"weights": "memory"}],
)
def test_a_policy_for_another_kind_of_machine_is_one_line_that_names_both(changed):
    other = HERE._replace(**changed)
    [line] = tuned_elsewhere(other._asdict(), HERE)
    assert other.text() in line
    assert HERE.text() in line
    assert "\n" not in line


def test_a_model_that_fits_the_cache_is_read_from_there(monkeypatch):
    model = tiny_model()
    read = sum(p.numel() * 4 for p in model.lm.model.layers.parameters()) + model.lm.lm_head.weight.numel() * 4
    for size, where in ((2 * read, "cache"), (read // 2, "memory"), (0, "memory")):
        monkeypatch.setattr("adadecode.model.machine_kind.cache_bytes", lambda size=size: size)
        kind = MachineKind.of(model)
        assert (kind.dtype, kind.weights) == ("float32", where)


def test_a_processor_is_its_make_and_model_by_number(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n"
    )
    assert processor_family(cpuinfo) == "AuthenticAMD family 23 model 1"
    cpuinfo.write_text("Processor\t: ARMv8\n")
    assert processor_family(cpuinfo) == processor_family(tmp_path / "none") == cpu_name()


def test_the_largest_cache_counts(tmp_path):
    for idx, size in enumerate(("32K", "1024K", "32M")):
        (tmp_path / f"index{idx}").mkdir()
        (tmp_path / f"index{idx}" / "size").write_text(size + "\n")
    assert cache_bytes(tmp_path) == 32 * 2**20
    assert cache_bytes(tmp_path / "none") == 0


def test_what_a_policy_was_tuned_for_is_in_its_file(tmp_path):
    file = tmp_path / "policy.yaml"
    for text, expected in (
        ("gamma: 0.5\ntuned: {machine: {threads: 2}}\n", {"threads": "2"}),
        ("gamma: 0.5\ntuned: {machine: 'AMD EPYC, 2 threads'}\n", None),
        ("gamma: 0.5\n", None),
        ("gamma: [\n", None),
    ):
        file.write_text(text)
        assert tuned_for(str(file)) == expected
    assert tuned_for(str(tmp_path / "gone.yaml")) is None
    assert tuned_for("paper") is None
    demo = tuned_for("demo")
    assert demo is not None
    assert set(demo) == set(MachineKind._fields)


def test_an_evaluation_with_a_policy_for_another_machine_says_so(tmp_path, capsys):
    save_tiny_model(tmp_path / "model", num_layers=4)
    save_tiny_heads(tmp_path / "heads", tmp_path / "model", (1, 2))
    write_prompts(tmp_path / "prompts.jsonl", ["w3 w4 w5"])
    machine = MachineKind("a processor of long ago", 1, "float32", "cache")._asdict()
    (tmp_path / "policy.yaml").write_text(f"exits: [1]\ngamma: 0.5\ntuned: {{machine: {machine}}}\n")
    flags = {
        "model": tmp_path / "model",
        "heads": tmp_path / "heads",
        "task": "jsonl",
        "data-file": tmp_path / "prompts.jsonl",
        "policy": tmp_path / "policy.yaml",
        "dtype": "float32",
        "threads": 1,
        "kernels": "eager",
        "max-new-tokens": 4,
        "out": tmp_path / "run",
    }
    arguments = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--local", *arguments])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert "tuned for another kind of machine (a processor of long ago, threads 1, float32" in shown.out + shown.err


def test_several_gpus_are_told_by_their_number_and_names(monkeypatch):
    names = ["H100", "H100", "A100"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    gpus = [torch.device("cuda", idx) for idx in range(3)]
    assert [gpu_names(gpus[:count]) for count in (1, 2, 3)] == ["H100", "2 x H100", "2 x H100 + A100"]


def test_a_policy_tuned_on_outputs_drawn_otherwise_is_told(tmp_path):
    file = tmp_path / "policy.yaml"
    greedy, drawn = {"temperature": 0.0}, {"temperature": 0.7, "sampling_seed": 3}
    file.write_text("gamma: 0.5\ntuned: {sampling: temperature 0.7}\n")
    assert drawn_otherwise(str(file), drawn) == drawn_otherwise("paper", drawn) == []
    assert "(temperature 0.7) than these (greedy)" in drawn_otherwise(str(file), greedy)[0]
    file.write_text("gamma: 0.5\ntuned: {model: demo}\n")
    assert drawn_otherwise(str(file), greedy) == []
    assert len(drawn_otherwise(str(file), drawn)) == 1
