"""`adadecode verify` on a real run: every planted fault is caught by the check of its name, and good runs by none."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.report.proof import largest_false_share, most_false, proof_sentence
from adadecode.runs.audit import CHECKS
from adadecode.runs.result import read_result
from tests.planting import (
    OURS,
    each,
    edit_json,
    edit_table,
    forge,
    once,
    plant,
    plant_in_first,
    plant_worker,
    scale_times,
)

ROOT = Path(__file__).parents[3]
PUBLISHED = sorted(file.parent for file in (ROOT / "results" / "reference").rglob("run.json"))
COMMAND = ("--task", "demo-math", "--limit", 3, "--repeats", 2, "--max-new-tokens", 24, "--shard-size", 1)
METHODS = ("--methods", "vanilla,vanilla-w1,adadecode,ngram,layer-skipping", "--skip-layers", "4,5")

EOS = 1  # of the embedded model

Fault = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(cli, tmp_path_factory) -> Path:
    """A run that nobody altered: 3 samples, 5 methods, 2 repeats, decoded by the embedded model."""
    out = tmp_path_factory.mktemp("audit") / "run"
    assert cli("eval", *COMMAND, *METHODS, "--local", "--threads", 1, "--out", out).exit_code == 0
    return out


@pytest.fixture
def run(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


def broken(stdout: str) -> list[str]:
    """The names of the checks that found something, by the line of the audit."""
    (line,) = (line for line in stdout.splitlines() if line.startswith("audit: "))
    return line.partition("; not: ")[2].split(", ") if "; not: " in line else []


def rows(change: Callable[[list[dict[str, Any]]], object]) -> Fault:
    return lambda run: plant(run, change)


def shard(change: Callable[[list[dict[str, Any]]], object]) -> Fault:
    return lambda run: plant_in_first(run, change)


def in_json(name: str, change: Callable[[dict[str, Any]], object]) -> Fault:
    return lambda run: edit_json(run / name, change)


def table(name: str, **columns: Callable[[Any], Any]) -> Fault:
    return lambda run: edit_table(run / name, **columns)


def metadata(name: str, **changed: str | None) -> Fault:
    """Another text in the key-value metadata of a table, or none."""

    def change(run: Path) -> None:
        found = pq.read_table(run / name)
        facts = dict(found.schema.metadata or {}) | {
            key.encode(): (value or "").encode() for key, value in changed.items()
        }
        facts = {key: value for key, value in facts.items() if changed.get(key.decode(), "") is not None}
        pq.write_table(found.replace_schema_metadata(facts), run / name)

    return change


def of_first_file(**changed: str | None) -> Fault:
    """Other metadata in the data file of the first shard, whose commit fits; None: left out."""

    def change(run: Path) -> None:
        file = min((run / "commits").iterdir())
        found = pq.ParquetFile(run / json.loads(file.read_text())["file"]).read()
        facts = {
            **dict(found.schema.metadata or {}),
            **{key.encode(): (of or "").encode() for key, of in changed.items()},
        }
        facts = {key: value for key, value in facts.items() if changed.get(key.decode(), "") is not None}
        forge(run, file, found.to_pylist(), found.schema.with_metadata(facts))

    return change


def another_experiment(run: Path) -> None:
    """One shard of other weights, as its commit, its file and run.json say."""
    facts = plant_worker(run, 0, model_hash="f" * 16)
    edit_json(run / "run.json", lambda content: content["workers"].append(facts))


def altered_ids(rows: list[dict[str, Any]]) -> None:
    """A token of one method is another, and it says that it is vanilla's."""
    row = next(row for row in rows if row["method"] == OURS)
    row["output_token_ids"] = [*row["output_token_ids"][:-1], row["output_token_ids"][-1] + 1]


def longer(row: dict[str, Any]) -> list[int]:
    return [*row["output_token_ids"], 7]


def in_scores(change: Callable[[list[dict[str, Any]]], object]) -> Fault:
    """A change of the list of the scores that a run keeps."""

    def alter(run: Path) -> None:
        found = pq.read_table(run / "scores.parquet")
        told = found.to_pylist()
        change(told)
        pq.write_table(pa.Table.from_pylist(told, schema=found.schema), run / "scores.parquet")

    return alter


def same_facts(**facts: Any) -> Fault:
    """The workers of all shards are others, as commits, data files and run.json say."""

    def change(run: Path) -> None:
        for file in sorted((run / "commits").iterdir()):
            plant_worker(run, int(file.stem), **facts)
        edit_json(run / "run.json", lambda content: [of.update(facts) for of in content["workers"]])

    return change


def unlike_vanilla(**claimed: Any) -> Fault:
    """A token of vanilla-w1 is another than vanilla's, and it says so, and what is `claimed`."""

    def change(row: dict[str, Any]) -> None:
        ids, theirs = row["output_token_ids"], row["output_token_ids"][3]
        told = {"parity": "mismatch", "logits_equal": False, "first_diff_idx": 3, "vanilla_token_id": theirs}
        told |= {"method_token_id": theirs + 1, "vanilla_margin": 3.0, "method_margin": 1.0}
        told |= {
            "output_token_ids": [*ids[:3], theirs + 1, *ids[4:]],
            "output_text": f"{row['sample_id']} {row['repeat']}",
        }
        row |= told | {"logits_digest": digest_of(row)} | claimed

    return rows(lambda found: [change(row) for row in found if row["method"] == "vanilla-w1"])


def in_rejected(change: Callable[[dict[str, Any], dict[str, Any]], object], method: str = "ngram") -> Fault:
    """A change of the first rejected draft of each row of a method that has some, and of the row."""

    def alter(found: list[dict[str, Any]]) -> None:
        some = [row for row in found if row["method"] == method and row["rejected"]]
        assert some, "the test needs some"
        for row in some:
            change(row["rejected"][0], row)

    return rows(alter)


def ends(row: dict[str, Any]) -> list[int]:
    """Where the model's own tokens stand in an output: the first, and the last of each round."""
    return [at for at, depth in enumerate(row["draft_depths"]) if depth == max(row["draft_depths"])]


def right_after_all(draft: dict[str, Any], row: dict[str, Any]) -> None:
    draft["token_id"] = row["output_token_ids"][ends(row)[draft["round_idx"] + 1]]


def in_one_round(row: dict[str, Any]) -> None:
    """All drafts of an output are said to be of its first round."""
    first, *later = row["draft_depths"]
    row["draft_depths"] = [first, *sorted(later)]


def digest_of(row: dict[str, Any]) -> str | None:
    """A digest that a row may have and no model gave: equal where ids are."""
    return row["logits_digest"] and f"{int(row['sample_id'][-3:]):032x}"


def of_ours(change: Callable[[dict[str, Any]], object]) -> Fault:
    """A change of the rows of adadecode."""
    return rows(lambda found: [change(row) for row in found if row["method"] == OURS])


PLANTED: dict[str, tuple[Fault, str]] = {
    "a count that is not that of the ids": (rows(each(OURS, output_len=lambda r: r["output_len"] + 1)), "counts"),
    "a prompt's count": (rows(each(prompt_len=lambda r: r["prompt_len"] + 1)), "counts"),
    "a row twice": (shard(lambda found: found.append(dict(found[0]))), "rows"),
    "a row missing": (shard(lambda found: found.pop()), "rows"),
    "a row that was not planned": (shard(lambda found: found.append(found[0] | {"sample_id": "warm-up"})), "rows"),
    "a repeat that was not planned": (shard(lambda found: found.append(found[0] | {"repeat": 2})), "rows"),
    "a method on another worker than vanilla": (rows(each(OURS, worker_id=lambda r: "worker-9")), "worker"),
    "a warm-up counted": (
        rows(each(started_at=lambda r: r["started_at"] - timedelta(hours=1))),
        "warm-up",
    ),
    "TTFT past the end": (of_ours(lambda r: r.update(ttft_s=r["e2e_s"] * 2)), "times"),
    "a negative gap": (of_ours(lambda r: r.update(step_gaps_s=[-g for g in r["step_gaps_s"]])), "times"),
    "a gap missing": (of_ours(lambda r: r.update(step_gaps_s=r["step_gaps_s"][1:])), "times"),
    "gaps that do not add up": (of_ours(lambda r: r.update(step_gaps_s=[g / 2 for g in r["step_gaps_s"]])), "times"),
    "end-to-end times divided": (rows(each(OURS, e2e_s=lambda r: r["e2e_s"] / 3)), "times"),
    "more rounds than tokens": (rows(each(OURS, num_rounds=lambda r: r["output_len"])), "rounds"),
    "tokens after EOS": (rows(each(finish_reason=lambda r: "eos" if r["repeat"] else "length")), "endings"),
    "tokens after the model's EOS in all rows alike": (
        rows(each(output_token_ids=lambda r: [EOS, *r["output_token_ids"][1:]])),
        "model",
    ),
    "an end that is none of the model's": (rows(each(finish_reason=lambda r: "eos")), "model"),
    "a length past the limit": (
        rows(each(output_token_ids=longer, output_len=lambda r: r["output_len"] + 1)),
        "limits",
    ),
    "more accepted than drafted": (rows(each(OURS, num_accepted=lambda r: r["num_drafted"] + 1)), "drafts"),
    "a rejected draft made up": (
        of_ours(lambda r: r["rejected"].append({"round_idx": 0, "position": 1, "token_id": 7, "exit": r["exits"][0]})),
        "rejected",
    ),
    "a rejected draft that is the model's own token": (in_rejected(right_after_all), "rejected"),
    "a rejected draft a place further": (
        in_rejected(lambda draft, _: draft.update(position=draft["position"] + 1)),
        "rejected",
    ),
    "a rejected draft of another round": (
        in_rejected(lambda draft, row: draft.update(round_idx=(draft["round_idx"] + 1) % row["num_rounds"])),
        "rejected",
    ),
    "a rejected draft past max_drafts": (
        in_rejected(lambda draft, row: draft.update(position=ends(row)[draft["round_idx"]] + 6), OURS),
        "rejected",
    ),
    "a rejected draft that ends the output": (in_rejected(lambda draft, _: draft.update(token_id=EOS)), "model"),
    "no rejected drafts in any row": (rows(each(rejected=lambda r: None)), "metadata"),
    "drafts of several rounds in one": (of_ours(in_one_round), "rounds"),
    "an output whose last token is a draft": (
        of_ours(lambda r: r.update(draft_depths=[*r["draft_depths"][1:], r["draft_depths"][0]][::-1])),
        "drafts",
    ),
    "exits of a worker that are no layers": (
        in_json("commits/00000.json", lambda of: of["worker"]["draft_exits"]["demo-math"].update(adadecode=[10**30])),
        "placement",
    ),
    "an exit at the last layer": (of_ours(lambda r: r.update(exits=[*r["exits"][:-1], 16])), "exits"),
    "an exit below the first": (of_ours(lambda r: r.update(exits=[-1, *r["exits"][1:]])), "exits"),
    "too few layers": (rows(each(OURS, layers_per_token=lambda r: 0.5)), "layers"),
    "a layer too few": (
        of_ours(lambda r: r.update(layers_per_token=r["layers_per_token"] - 1 / (r["output_len"] - 1))),
        "layers",
    ),
    "drafts that cost nothing": (
        of_ours(lambda r: r.update(layers_per_token=16 * r["num_rounds"] / (r["output_len"] - 1))),
        "layers",
    ),
    "a layer skipped that was not to be": (rows(each("layer-skipping", layers_per_token=lambda r: 13.0)), "layers"),
    "vanilla's times doubled": (
        rows(lambda found: [scale_times(row, 2.0) for row in found if row["method"].startswith("vanilla")]),
        "clock",
    ),
    "all rows begun at once": (
        rows(each(started_at=lambda r: r["started_at"].replace(minute=59, second=59, microsecond=0))),
        "clock",
    ),
    "a mismatch that is a near-tie": (unlike_vanilla(vanilla_margin=0.25), "claims"),
    "a near-tie that is a mismatch": (unlike_vanilla(parity="near_tie"), "claims"),
    "equal digests of other ids": (unlike_vanilla(logits_digest="0" * 32), "outputs"),
    "vanilla's digest of one repeat": (
        rows(each("vanilla", logits_digest=lambda r: f"{r['repeat']:032x}")),
        "outputs",
    ),
    "an end at a stop string of the model's own EOS": (
        rows(
            lambda found: [
                row.update(output_token_ids=[*row["output_token_ids"][:-1], EOS], finish_reason="stop") for row in found
            ]
        ),
        "model",
    ),
    "outputs cut short alike": (
        rows(
            lambda found: [
                row.update(finish_reason="length", output_token_ids=row["output_token_ids"][:9], output_len=9)
                for row in found
            ]
        ),
        "model",
    ),
    "a worker of another dtype": (same_facts(dtype="float32"), "settings"),
    "a worker of another device": (same_facts(gpu="NVIDIA H100"), "settings"),
    "a worker of other exits": (same_facts(exits={"demo-math": [1, 2]}), "settings"),
    "a worker of a deeper model": (same_facts(num_layers=32), "model"),
    "no start": (in_json("run.json", lambda of: of.update(starts=[])), "provenance"),
    "an unknown status": (rows(once(OURS, status="fine")), "labels"),
    "a prompt of one method": (rows(each(OURS, prompt_token_ids=lambda r: [5] * r["prompt_len"])), "prompts"),
    "a text of one method": (rows(each(OURS, output_text=lambda r: "four")), "outputs"),
    "a turn taken twice": (rows(each(order_idx=lambda r: 0)), "turns"),
    "an order that was not planned": (rows(each(order_idx=lambda r: (r["order_idx"] + 1) % 5)), "order"),
    "a claim withdrawn": (rows(each(OURS, parity=lambda r: None)), "owed"),
    "a key where nothing was drawn": (rows(once(OURS, sampling_key="0" * 16)), "keys"),
    "a digest that is none": (rows(each(logits_digest=lambda r: "equal")), "claims"),
    "an end at a stop string of a run that has none": (rows(each(finish_reason=lambda r: "stop")), "stops"),
    "all answers right": (rows(each(correct=lambda r: True)), "correct"),
    "another attempt": (rows(each(attempt=lambda r: "f" * 12)), "commits"),
    "another width": (rows(each("vanilla-w1", width=lambda r: 8)), "placement"),
    "a commit of other counts": (
        in_json("commits/00000.json", lambda commit: commit["outcome"].update(num_exact=99)),
        "outcome",
    ),
    "a data file of another run": (of_first_file(fingerprint="0" * 16), "metadata"),
    "a data file of another worker": (of_first_file(worker="{}"), "metadata"),
    "a data file without a schema version": (of_first_file(schema_version=None), "metadata"),
    "a data file that does not say who made it": (of_first_file(worker=None), "metadata"),
    "a data file without a fingerprint": (of_first_file(fingerprint=""), "metadata"),
    "a shard of other weights": (another_experiment, "engines"),
    "parity where ids differ": (rows(altered_ids), "parity"),
    "equal logits where digests differ": (rows(each(OURS, logits_digest=lambda r: "0" * 32)), "parity"),
    "a plan of other prompts": (table("plan.parquet", prompt_hash=lambda x: "0" * 16), "plan"),
    "a setting changed": (in_json("run.json", lambda of: of["config"].update(dtype="float32")), "fingerprint"),
    "a table without its fingerprint": (metadata("summary.parquet", fingerprint=None), "fingerprint"),
    "a table of another revision": (metadata("verify.parquet", git_sha="0" * 40), "fingerprint"),
    "no provenance": (in_json("run.json", lambda of: of["provenance"].pop("packages")), "provenance"),
    "a worker left out": (in_json("run.json", lambda of: of.update(workers=[])), "provenance"),
    "a speedup made up": (table("summary.parquet", speedup_geomean=lambda x: x and 9.9), "tables"),
    "a consistency made up": (table("verify.parquet", consistency=lambda x: 0.5), "tables"),
    "a file that no commit names": (
        lambda run: shutil.copy(run / "samples" / "part-00000.parquet", run / "samples" / "more.parquet"),
        "files",
    ),
    "other scores of equal outputs": (
        in_scores(lambda told: [row.update(score=1.0) for row in told if row["method"] == OURS]),
        "scores",
    ),
    "a score twice": (in_scores(lambda told: told.append(told[0])), "scores"),
    "all outputs scored as right": (in_scores(lambda told: [row.update(score=1.0) for row in told]), "scores"),
    "a score missing": (in_scores(lambda told: told.pop()), "scores"),
    "a score of no output": (in_scores(lambda told: told.append(told[0] | {"sample_id": "another"})), "scores"),
    "scores of another output": (
        in_scores(lambda told: [row.update(output_hash="0" * 16) for row in told if row["repeat"] == 0]),
        "scores",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught_by_the_check_of_its_name(run, cli, name):
    fault, check = PLANTED[name]
    fault(run)
    result = cli("verify", run)
    assert result.exit_code == (4 if name == "a row missing" else 3), result.output
    assert check in broken(result.stdout), result.stdout


def test_every_check_has_a_planted_fault_and_a_name_of_its_own():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert {check for _, check in PLANTED.values()} == set(names)
    assert len(PLANTED) >= 20


def test_a_run_that_nobody_altered_holds_in_all_checks(good, cli):
    result = cli("verify", good)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"audit: {len(CHECKS)} checks, all hold" in result.stdout.splitlines()


def test_drafts_from_before_the_first_layer_and_stop_strings_raise_no_false_alarm(cli, tmp_path):
    methods = ("--methods", "vanilla,adadecode,ngram,layerskip,speculative,medusa,layer-skipping,hf-assisted")
    rivals = ("--draft-model", "demo-draft", "--medusa-heads", "demo", "--skip-layers", "4,5", "--stop-strings", "####")
    flags = ("--task", "demo-math", "--limit", 2, "--max-new-tokens", 64, "--local", "--threads", 1, "--out", tmp_path)
    assert cli("eval", *methods, *rivals, *flags).exit_code == 0
    result = cli("verify", tmp_path, "--recompute", 16)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"audit: {len(CHECKS)} checks, all hold" in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1].startswith(f"recompute: {proof_sentence(16, 16, 0)}; drawn by --seed ")


@pytest.mark.parametrize("name", ["run-0.1.0/complete", "run-schema-4"])
def test_a_run_of_schema_version_2_or_4_holds_in_all_checks(name, cli):
    result = cli("verify", ROOT / "tests" / "golden" / name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"audit: {len(CHECKS)} checks, all hold" in result.stdout.splitlines()


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_a_published_run_is_audited_as_far_as_its_tables_go_and_contradicts_nothing(folder, cli):
    result = cli("verify", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.endswith("its rows are not here: the table is as it was published, nothing was recomputed\n")


def test_a_published_table_of_another_run_is_told(cli, tmp_path):
    copy = Path(shutil.copytree(PUBLISHED[0], tmp_path / "run"))
    metadata("summary.parquet", fingerprint="0" * 16)(copy)
    result = cli("verify", copy)
    assert result.exit_code == 3
    assert "fingerprint: summary.parquet: its metadata lack or contradict run.json in fingerprint" in result.stdout


def test_the_checks_of_the_documentation_are_those_of_the_table():
    from adadecode.runs.audit import checks_table

    assert checks_table() in (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")


def test_rows_decoded_again_are_equal_and_the_proof_says_how_much_that_is(good, cli):
    result = cli("verify", good, "--recompute", 5, "--seed", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"recompute: {proof_sentence(30, 5, 0)}; drawn by --seed 2"


def test_rows_that_all_tables_tell_alike_and_no_model_made_are_found_by_decoding_again(run, cli):
    altered = each(output_token_ids=lambda r: [*r["output_token_ids"][:-1], r["output_token_ids"][-1] + 1])
    plant(run, altered)
    plant(run, each(logits_digest=digest_of))
    result = cli("verify", run)
    assert result.exit_code == 0, "the tables alone cannot tell"
    result = cli("verify", run, "--recompute", 2, "--seed", 0)
    assert result.exit_code == 3
    told = [line for line in result.stdout.splitlines() if line.startswith("recompute: ")]
    assert len(told) == 3
    assert "output position 23 is stored as " in told[0]
    assert told[-1].startswith("recompute: 2 of 30 rows were decoded again and 2 differ: ")


def test_a_text_that_is_not_what_its_ids_mean_is_found_by_decoding_again(run, cli):
    plant(run, each(output_text=lambda r: "four pens"))
    assert broken(cli("verify", run).stdout) == ["scores"]
    assert cli("score", run).exit_code == 0
    assert cli("verify", run).exit_code == 0, "the tables alone cannot tell"
    result = cli("verify", run, "--recompute", 1, "--seed", 0)
    assert result.exit_code == 3
    assert ": output_text is not what its ids mean" in result.stdout


def test_a_row_that_no_model_can_decode_is_a_false_one_and_ends_nothing(run, cli):
    plant(run, each(prompt_token_ids=lambda r: [10**6] * r["prompt_len"]))
    result = cli("verify", run, "--recompute", 2, "--seed", 0)
    assert result.exit_code == 3
    assert result.stdout.count("it cannot be decoded again: the prompt has token ids 1000000 to 1000000") == 2


def test_bits_that_differ_on_another_engine_prove_nothing_and_are_told(run, cli):
    plant(run, each(logits_digest=lambda r: "0" * 32))
    of_then = {"torch": "1.0.0", "code_hash": "0" * 16}
    for file in (run / "commits").iterdir():
        edit_json(file, lambda commit: commit["worker"].update(of_then))
    result = cli("verify", run, "--recompute", 1, "--seed", 0)
    lines = result.stdout.splitlines()
    assert any("on another engine than the run's" in line and ", there 1.0.0" in line for line in lines)
    assert lines[-1] == "recompute: 0 of 1 rows are equal; the others prove nothing here"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda of: of["provenance"]["hashes"].update(model_files="0" * 16), "--recompute: model_files has the hash "),
        (
            lambda of: of["provenance"]["hashes"].update({"heads_files_demo-math": "0" * 16}),
            "--recompute: heads_files_demo-math has the hash ",
        ),
    ],
)
def test_a_model_or_heads_other_than_the_runs_are_refused_by_their_hash(run, cli, edit, said):
    edit_json(run / "run.json", edit)
    result = cli("verify", run, "--recompute", 1, "--seed", 0)
    assert result.exit_code == 2
    assert said in result.stderr


def test_weights_other_than_those_of_the_rows_are_refused_by_their_hash(run, cli):
    for file in (run / "commits").iterdir():
        edit_json(file, lambda commit: commit["worker"].update(model_hash="0" * 16))
    result = cli("verify", run, "--recompute", 1, "--seed", 0)
    assert result.exit_code == 2
    assert "the run has weights 0000000000000000, and what is loaded " in result.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--recompute", 0), "--recompute 0: give a number of rows from 1 on"),
        (("--recompute", 1, "--seed", -1), "--seed -1: give a whole number from 0 on"),
        (("--seed", 1), "--seed 1: it is of the rows that --recompute draws"),
    ],
)
def test_flags_of_recompute_that_cannot_be_used_are_one_line(good, cli, flags, said):
    result = cli("verify", good, *flags)
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]


def test_a_published_run_has_no_rows_to_decode_again(usage_error):
    assert "has no rows that this program decoded" in usage_error("verify", PUBLISHED[0], "--recompute", 1, "--seed", 0)


def test_459_equal_rows_prove_with_99_percent_that_fewer_than_1_percent_are_false():
    assert largest_false_share(459, 0) < 0.01 < largest_false_share(458, 0)
    assert most_false(100_000, 459, 0) < 1000
    assert proof_sentence(100_000, 459, 0) == (
        "459 of 100000 rows were decoded again and all are equal: with 99 % confidence at most 996 of the rows "
        "of this run are false (1.00 %), and of a run of any length fewer than 1.00 %"
    )


@pytest.mark.parametrize(("num_rows", "num_drawn"), [(6, 3), (9, 4), (12, 12), (10, 1)])
def test_the_bound_is_the_largest_number_that_the_draw_does_not_exclude(num_rows, num_drawn):
    from itertools import combinations

    draws = list(combinations(range(num_rows), num_drawn))
    for num_found in range(num_drawn + 1):
        chance = [
            sum(sum(row < num_false for row in draw) <= num_found for draw in draws) / len(draws)
            for num_false in range(num_rows + 1)
        ]
        possible = [of for of in range(num_found, num_rows - num_drawn + num_found + 1) if chance[of] > 1 - 0.9]
        assert most_false(num_rows, num_drawn, num_found, 0.9) == max(possible)


def test_an_interrupted_run_lacks_rows_and_nothing_else(cli):
    result = cli("verify", ROOT / "tests" / "golden" / "run-0.1.0" / "interrupted")
    assert (result.exit_code, broken(result.stdout)) == (4, ["rows"])


def test_a_repeated_row_counts_once(run):
    before = read_result(run).summary
    plant_in_first(run, lambda found: found.append(dict(found[0])))
    assert read_result(run).summary.equals(before)
