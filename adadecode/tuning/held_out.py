"""How contenders do on prompts the search did not see, beside the faster vanilla and what was predicted of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from adadecode.methods import REFERENCE, baselines
from adadecode.report.stats import fastest, geomean_speedup, mean_log_s, total_s, total_speedup
from adadecode.tuning.contenders import Contender
from adadecode.tuning.costs import Costs
from adadecode.tuning.result import ContenderResult, TuneRow
from adadecode.tuning.search import Simulator


def compare_contenders(
    contenders: Sequence[Contender],
    rows: Sequence[TuneRow],
    alike: Mapping[str, Sequence[bool]],
    unseen: Simulator,
    costs: Costs,
) -> tuple[ContenderResult, ...]:
    """Per contender its measured `rows`, what `unseen` predicts at these `costs`, and on which prompts replays agree.

    `alike` has an entry per prompt for the contenders that can be replayed.
    """
    keys = sorted({(row.task, row.sample_id, row.repeat) for row in rows})
    prompts = {key: idx for idx, key in enumerate(dict.fromkeys((task, sample) for task, sample, _ in keys))}
    prompt_idx = np.array([prompts[task, sample] for task, sample, _ in keys])
    times = _comparable_times(rows)
    decode_s = {one.name: np.array([times[one.name, *key] for key in keys]) for one in contenders}
    geomean_over, total_over = (fastest(by, baselines(), prompt_idx, decode_s) for by in (mean_log_s, total_s))
    results = []
    for contender in contenders:
        of_contender = [row for row in rows if row.variant == contender.name]
        speedup = geomean_speedup(prompt_idx, decode_s[geomean_over], decode_s[contender.name])
        speedup_total = total_speedup(prompt_idx, decode_s[total_over], decode_s[contender.name])
        assert speedup is not None, contender
        assert speedup_total is not None, contender
        same = alike.get(contender.name)
        drafted = sum(row.num_drafted for row in of_contender)
        num_tokens = sum(row.output_len - 1 for row in of_contender)
        candidate = contender.candidate
        results.append(
            ContenderResult(
                variant=contender.name,
                tokens_per_s=num_tokens / sum(row.decode_s for row in of_contender),
                speedup=speedup,
                speedup_total=speedup_total,
                predicted_speedup=None if candidate is None else speedup_of(unseen.gains(candidate, costs)),
                acceptance_rate=sum(row.num_accepted for row in of_contender) / drafted if drafted else None,
                layers_per_token=sum(row.layers_run for row in of_contender) / num_tokens,
                num_exact=sum(row.is_exact for row in of_contender),
                num_checked=len(of_contender),
                num_replayed_alike=None if same is None else sum(same),
                num_replayed=None if same is None else len(same),
            )
        )
    return tuple(results)


def _comparable_times(rows: Sequence[TuneRow]) -> dict[tuple[str, str, str, int], float]:
    """Seconds by contender, task, sample and repeat, for as many tokens as vanilla's output has.

    With some kernels an output at width 1 ends elsewhere: its time is taken per token.
    """
    num_tokens = {(row.task, row.sample_id): row.output_len - 1 for row in rows if row.variant == REFERENCE}
    return {
        (row.variant, row.task, row.sample_id, row.repeat): row.decode_s
        * num_tokens[row.task, row.sample_id]
        / max(1, row.output_len - 1)
        for row in rows
    }


def speedup_of(gains: NDArray[np.float64]) -> float:
    """The geometric mean of speedups whose natural logs are `gains`."""
    return float(np.exp(gains.mean()))
