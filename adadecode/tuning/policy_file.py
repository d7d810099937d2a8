"""A tuned policy as the file that `eval --policy` reads, with what was predicted and measured of it."""

from pathlib import Path
from typing import Any

import yaml

from adadecode.files import write_whole
from adadecode.settings import DRAWN_BEFORE, HeadKind, sampling_text
from adadecode.tuning.replay import Candidate
from adadecode.tuning.result import TuneResult


def policy_settings(best: Candidate, head: HeadKind) -> dict[str, Any]:
    """`best` over heads tested as `head`, as the decode settings of a policy file."""
    policy = best.policy
    gammas = list(policy.gammas)
    of_exits = {"gamma": gammas[0] if len(set(gammas)) == 1 else gammas} if gammas else {}
    settings: dict[str, Any] = {
        "exits": list(policy.exits),
        **of_exits,
        "stop": policy.stop,
        "max_drafts": policy.max_drafts,
        "head": head,
        "gate": best.gate,
    }
    return settings | {k: v for k, v in (("reject", policy.reject), ("ngram", policy.ngram)) if v is not None}


def write_policy(path: Path, result: TuneResult) -> None:
    """Writes the policy of `result`; `eval --policy` reads the settings alone."""
    tuned, made_from = result.tuned, result.made_from
    assert tuned.predicted_speedup is not None, tuned
    drawn = sampling_text({**result.settings, "sampling_seed": DRAWN_BEFORE["sampling_seed"]})  # whatever the noise
    known = {
        "model": result.settings["model"],
        "model_hash": made_from["model_hash"],
        "heads_hash": made_from["heads_hash"],
        **({"foreign_heads": made_from["foreign_heads"]} if "foreign_heads" in made_from else {}),
        **({} if drawn is None else {"sampling": drawn}),
        "machine": result.machine.kind._asdict(),
        "prompts": {"tuned_on": result.num_prompts.tuned_on, "held_out": result.num_prompts.held_out},
        "cross_validated_speedup": round(result.predicted.cross_validated, 3),
        "predicted_speedup": round(tuned.predicted_speedup, 3),
        "measured_speedup": round(tuned.speedup.value, 3),
        "oracle_speedup": {name: round(speedup, 3) for name, speedup in result.oracle.by_name().items()},
    }
    settings = yaml.safe_dump(result.policy, sort_keys=False, default_flow_style=None)
    about = yaml.safe_dump({"tuned": known}, sort_keys=False, default_flow_style=False, width=1000)
    comment = "# Found by `adadecode tune`. Decoding speedups over the faster vanilla, geometric means over prompts.\n"
    write_whole(path, comment + settings + about)
