"""How a tuned policy does on prompts its search did not see, beside the paper's and both vanillas; its policy file."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from adadecode.engine.policy import VANILLA, Policy, make_policy, paper_exits
from adadecode.files import write_whole
from adadecode.methods import baselines
from adadecode.report.stats import paired_speedups
from adadecode.settings import DecodeSettings
from adadecode.tuning.costs import Costs
from adadecode.tuning.measure import Variant
from adadecode.tuning.replay import Candidate
from adadecode.tuning.search import Simulator
from adadecode.tuning.space import Tuner


def papers_policy(tuner: Tuner) -> Policy | None:
    """The paper's default policy (section 4); None where the heads lack one of its exits."""
    exits = paper_exits(tuner.model.num_layers)
    if not exits or any(not set(exits) <= set(of_task.exits) for of_task in tuner.heads.values()):
        return None
    return make_policy(DecodeSettings(), exits, tuner.model.num_layers)  # pyright: ignore[reportCallIssue]


def variants_of(tuner: Tuner, best: Candidate, paper: Policy | None) -> list[Variant]:
    """What is measured: both vanillas, the paper's policy with full heads and with the traced ones, and the tuned one."""
    width = tuner.space.width
    variants = [Variant("vanilla", VANILLA, width), Variant("vanilla-w1", VANILLA, 1)]
    if paper is not None and tuner.head != "full" and tuner.full_heads is not None:
        variants.append(Variant("paper", paper, width, tuner.full_heads))
    if paper is not None and Candidate(paper).lies_in(tuner.space):
        name = "paper" if tuner.head == "full" else f"paper, {tuner.head}"
        variants.append(Variant(name, paper, width, tuner.heads, Candidate(paper)))
    gated = {task: of_task.with_gate(best.gate) for task, of_task in tuner.heads.items()}
    return [*variants, Variant("tuned", best.policy, width, gated, best)]


def judged(
    variants: list[Variant], rows: list[dict[str, Any]], alike: dict[str, list[bool]], unseen: Simulator, costs: Costs
) -> list[dict[str, Any]]:
    """Per variant the speedup over the faster vanilla, measured and predicted, and what agrees."""
    keys = sorted({(row["task"], row["sample_id"], row["repeat"]) for row in rows})
    prompts = {key: idx for idx, key in enumerate(dict.fromkeys((task, sample) for task, sample, _ in keys))}
    prompt_idx = [prompts[task, sample] for task, sample, _ in keys]
    # vanilla-w1 may end elsewhere with some kernels: its time is taken per token, for as many as vanilla's
    num_tokens = {(r["task"], r["sample_id"]): r["output_len"] - 1 for r in rows if r["variant"] == "vanilla"}
    times = {
        (r["variant"], r["task"], r["sample_id"], r["repeat"]): r["decode_s"]
        * num_tokens[r["task"], r["sample_id"]]
        / max(1, r["output_len"] - 1)
        for r in rows
    }
    decode_s = {v.name: [times[v.name, *key] for key in keys] for v in variants}
    faster = min(baselines(), key=lambda name: sum(decode_s[name]))
    judged = []
    for variant in variants:
        of_variant = [row for row in rows if row["variant"] == variant.name]
        speedups = paired_speedups(prompt_idx, decode_s[faster], decode_s[variant.name])
        assert speedups is not None
        same = alike.get(variant.name)
        drafted, accepted = (sum(row[name] for row in of_variant) for name in ("num_drafted", "num_accepted"))
        tokens = sum(row["output_len"] - 1 for row in of_variant)
        judged.append(
            {
                "variant": variant.name,
                "tokens_per_s": tokens / sum(row["decode_s"] for row in of_variant),
                "speedup": asdict(speedups.geomean),
                "speedup_total": asdict(speedups.total),
                "predicted_speedup": None if same is None else geomean(unseen.gains(variant.candidate, costs)),  # pyright: ignore[reportArgumentType]
                "acceptance_rate": accepted / drafted if drafted else None,
                "layers_per_token": sum(row["layers_run"] for row in of_variant) / tokens,
                "num_exact": sum(row["is_exact"] for row in of_variant),
                "num_checked": len(of_variant),
                "num_replayed_alike": None if same is None else sum(same),
                "num_replayed": None if same is None else len(same),
            }
        )
    return judged


def policy_settings(tuner: Tuner, best: Candidate) -> dict[str, Any]:
    """`best` as the decode settings of a policy file."""
    policy = best.policy
    gammas = set(policy.gammas)
    settings: dict[str, Any] = {
        "exits": list(policy.exits),
        "gamma": policy.gammas[0] if len(gammas) == 1 else list(policy.gammas),
        "max_drafts": policy.max_drafts,
        "head": tuner.head,
        "gate": best.gate,
    }
    return settings | {k: v for k, v in (("reject", policy.reject), ("ngram", policy.ngram)) if v is not None}


def write_policy(path: Path, result: dict[str, Any]) -> None:
    """A policy file with what was predicted and measured of it; `eval --policy` reads the settings alone."""
    tuned = next(variant for variant in result["variants"] if variant["variant"] == "tuned")
    machine, made_from = result["machine"], result["made_from"]
    known = {
        "model": result["settings"]["model"],
        "model_hash": made_from["model_hash"],
        "heads_hash": made_from["heads_hash"],
        "machine": f"{machine['device']}, {machine['threads']} threads, {made_from['dtype']}",
        "prompts": result["num_prompts"],
        "cross_validated_speedup": round(result["predicted"]["cross_validated"], 3),
        "predicted_speedup": round(tuned["predicted_speedup"], 3),
        "measured_speedup": round(tuned["speedup"]["value"], 3),
        "oracle_speedup": {name: round(speedup, 3) for name, speedup in result["oracle"].items()},
    }
    settings = yaml.safe_dump(result["policy"], sort_keys=False, default_flow_style=None)
    about = yaml.safe_dump({"tuned": known}, sort_keys=False, default_flow_style=False, width=1000)
    comment = "# Found by `adadecode tune`. Decoding speedups over the faster vanilla, geometric means over prompts.\n"
    write_whole(path, comment + settings + about)


def geomean(gains: NDArray[np.float64]) -> float:
    return float(np.exp(gains.mean()))
