"""What CONTRIBUTING says it takes to add a task, a method, a setting and a family, done as written and used."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from transformers import Qwen2Config, Qwen2ForCausalLM

from adadecode.cli.options import settings_options
from adadecode.engine.generate import Request, generate
from adadecode.engine.transformers import generate_with_transformers
from adadecode.errors import UnsupportedModelError, UsageError
from adadecode.methods import METHODS
from adadecode.model.decoder import DecoderModel
from adadecode.model.families import FAMILIES
from adadecode.runs.folder import read_samples
from adadecode.settings import EvalConfig, build_settings
from adadecode.tasks import TASKS
from tests.command_lines import FENCED_BLOCK
from tests.models import tiny_lm

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
SUMS = [{"sum": "w1 w2", "result": "w3"}, {"sum": "w4 w5", "result": "w9"}]


@pytest.fixture
def added(monkeypatch) -> dict[str, Any]:
    """What the blocks of the worked example define; their task, method and family are there for one test."""
    monkeypatch.setattr("adadecode.tasks.TASKS", TASKS)  # put back what is set below
    for table, name in ((TASKS, "sums"), (METHODS, "hasty"), (FAMILIES, "toy")):
        monkeypatch.setitem(table, name, None)
    example = CONTRIBUTING.read_text(encoding="utf-8").partition("<!-- worked example -->")[2]
    blocks = [block for language, block in FENCED_BLOCK.findall(example) if language == "python"]
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        own: dict[str, Any] = {"__name__": "worked_example"}  # a block stands alone
        exec(compile(block, str(CONTRIBUTING), "exec"), own)
        names |= own
    return names


def test_the_worked_example_adds_a_task_and_a_method_that_every_room_knows(added, cli, tiny, tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, SUMS)))
    flags = tiny.flags(task="sums", data_file=file, methods="vanilla,adadecode,hasty", gamma=0.9)
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 4/4, logits 4/4" in result.stdout
    rows = {(row["sample_id"], row["method"]): row for row in read_samples(tmp_path / "run").to_pylist()}
    assert {name for _, name in rows} == {"vanilla", "adadecode", "hasty"}
    for sample_id in ("sums-00000", "sums-00001"):
        hasty, ours = rows[sample_id, "hasty"], rows[sample_id, "adadecode"]
        assert hasty["parity"] == "exact"
        assert hasty["num_drafted"] > ours["num_drafted"]
        assert hasty["correct"] is ours["correct"] is False  # a random model
    assert "hasty" in cli("report", tmp_path / "run").stdout
    assert "sums" in cli("tasks").stdout


def test_the_setting_of_the_worked_example_is_a_flag_a_key_of_yaml_and_part_of_the_fingerprint(added, tmp_path):
    kind = added["SizedConfig"]

    @click.command()
    @settings_options(kind)
    def sized(config_file, **flags):
        click.echo(str(build_settings(kind, config_file, flags).size))

    run, file = CliRunner().invoke, tmp_path / "sized.yaml"
    file.write_text("size: 4\n")
    assert "--size INTEGER How large. [default: 3]" in " ".join(run(sized, ["--help"]).stdout.split())
    assert [run(sized, given).stdout for given in ([], ["--config", str(file)], ["--size", "5"])] == [
        "3\n",
        "4\n",
        "5\n",
    ]
    with pytest.raises(UsageError, match=r"--size 0: .*greater than or equal to 1"):
        build_settings(kind, None, {"size": 0})
    prints = {kind(**given).fingerprint() for given in ({}, {"size": 4}, {"size": 4, "workers": 2})}
    assert len(prints) == 2
    assert EvalConfig().fingerprint() not in prints


class ToyConfig(Qwen2Config):
    model_type = "toy"


def test_the_family_of_the_worked_example_is_decoded_as_transformers_does(added, monkeypatch):
    sizes = tiny_lm("qwen2").config.to_dict() | {"model_type": "toy", "architectures": None}
    torch.manual_seed(0)
    lm: Any = Qwen2ForCausalLM(ToyConfig(**sizes))
    lm.model.layers[0].self_attn.q_proj.bias.data.fill_(1.0)  # a fresh one is zero
    model = DecoderModel(lm)
    ours = generate(model, Request([5, 6, 7], 12)).generation.output_token_ids
    assert ours == generate_with_transformers(model, Request([5, 6, 7], 12)).generation.output_token_ids
    monkeypatch.delitem(FAMILIES, "toy")
    with pytest.raises(UnsupportedModelError, match="'toy': its layers are not known"):
        DecoderModel(lm)


def test_all_are_gone_again():
    assert "sums" not in TASKS
    assert "hasty" not in METHODS
    assert "toy" not in FAMILIES
