"""What a bench's measurements come to: speeds, ceilings, overheads and bytes."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from adadecode.bench.calls import Call
from adadecode.bench.machine import machine_of
from adadecode.bench.result import BenchResult, BenchRow, Memory, MethodSpeed, PartTime, Roofline
from adadecode.bench.subject import BenchSubject
from adadecode.bench.timer import CallTime
from adadecode.kernels.weights import Gate, Head
from adadecode.methods import METHODS, NEVER_FIRES, REFERENCE
from adadecode.model.decoder import DecoderModel
from adadecode.provenance import provenance


class Parity(NamedTuple):
    """How one output stands beside vanilla's; `logits_equal` is None where logits were not recorded."""

    parity: str  # exact | near_tie | mismatch
    logits_equal: bool | None


class CountedPass:
    """What one generation of every prompt by each of `methods` called and gave, beside vanilla's; filled as they come."""

    def __init__(self, methods: Iterable[str]) -> None:
        self.calls: dict[str, Counter[Call]] = {method: Counter() for method in methods}
        self.tests: dict[Call, Head | Gate] = {}
        self.outputs: dict[str, list[tuple[int, ...]]] = {method: [] for method in methods}
        self.parity: dict[str, list[Parity]] = {method: [] for method in methods}


@dataclass(frozen=True)
class Measurements:
    """All that was measured of `subject`; `bandwidth`, in bytes per second, is None where nothing measures it."""

    subject: BenchSubject
    counted: CountedPass
    rows: list[BenchRow]
    times: dict[Call, CallTime]
    memory: Memory
    bandwidth: float | None

    @cached_property
    def num_columns(self) -> int:
        """Positions attended to by the middle token of an output, over all prompts."""
        return round(statistics.mean(row.prompt_len + row.output_len / 2 for row in self.rows))

    def read_bytes(self, call: Call) -> int:
        """Bytes that `call` must read."""
        return read_bytes(self.subject, call, self.counted.tests, self.num_columns)


def layer_bytes(model: DecoderModel, start: int, stop: int) -> int:
    """Bytes of the weights of layers [start, stop)."""
    return sum(layer.num_bytes for layer in model.weights.layers[start:stop])


def read_bytes(subject: BenchSubject, call: Call, tests: Mapping[Call, Head | Gate], num_columns: int) -> int:
    """Bytes a call must read: weights, and keys and values of `num_columns` positions in its layers."""
    model = subject.model
    per_column = model.weights.column_bytes // model.num_layers
    match call.kind:
        case "layers":
            heads = [test for test in tests.values() if isinstance(test, Head)]
            blocks = {head.block for head in heads if head.block is not None and head.block.exit_layer == call.stop}
            num_layers = call.stop - call.start + len(blocks)
            block_bytes = sum(block.layer.num_bytes for block in blocks)
            return layer_bytes(model, call.start, call.stop) + block_bytes + num_layers * num_columns * per_column
        case "test":
            return sum(tensor.nbytes for tensor in tests[call].tensors)
        case "verify":
            return sum(tensor.nbytes for tensor in model.weights.head.tensors)
        case "enter":
            return 0


def step_weights(model: DecoderModel) -> int:
    """Bytes of the weights that a step of vanilla reads."""
    return layer_bytes(model, 0, model.num_layers) + sum(tensor.nbytes for tensor in model.weights.head.tensors)


def bench_result(measured: Measurements) -> BenchResult:
    """What `measured` comes to."""
    subject = measured.subject
    step = (Call("layers", 1, 1, 0, subject.model.num_layers), Call("verify", 1, 1))
    step_bytes = sum(measured.read_bytes(call) for call in step)
    roofline = Roofline(measured.bandwidth, step_bytes, _over(measured.bandwidth, step_bytes))
    repeats = {method: Repeats.of(measured, method) for method in subject.methods}
    faster = FasterVanilla.of(measured, repeats)
    methods = {method: _speed(measured, method, repeats[method], faster, roofline) for method in subject.methods}
    owing = [speed.is_exact for name, speed in methods.items() if METHODS[name].owes == "exact"]
    exact = [is_exact for is_exact in owing if is_exact is not None]
    never = NEVER_FIRES in methods
    return BenchResult(
        bench=subject.config.name,
        synthetic=subject.config.shape is not None,
        parity=None if not exact else "exact" if all(exact) else "broken",
        methods=methods,
        faster_vanilla=faster.in_all,
        faster_vanilla_geomean=faster.by_prompt,
        never_fires_cost=_paired_ratio(measured.rows, NEVER_FIRES, REFERENCE) if never else None,
        parts=tuple(_part(call, time, measured, methods) for call, time in measured.times.items()),
        memory=measured.memory,
        roofline=roofline,
        machine=machine_of(subject),
        settings=subject.config.model_dump(mode="json"),
        provenance=provenance(),
    )


class Spread(NamedTuple):
    """The median and the extremes of a figure over the repeats; None where it could not be measured."""

    median: float | None
    least: float | None
    most: float | None

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values)) if values else cls(None, None, None)


class Repeats(NamedTuple):
    """What one method did in each repeat, which is all prompts together, and how long each took."""

    num_tokens: int  # after the first of each output
    num_rounds: int
    layers_run: int
    num_drafted: int
    num_accepted: int
    decode_s: tuple[float, ...]

    @classmethod
    def of(cls, measured: Measurements, method: str) -> "Repeats":
        by_repeat: dict[int, list[BenchRow]] = {}
        for row in measured.rows:
            if row.method == method:
                by_repeat.setdefault(row.repeat, []).append(row)
        first, *_ = by_repeat.values()
        return cls(
            num_tokens=sum(row.output_len - 1 for row in first),
            num_rounds=sum(row.num_rounds for row in first),
            layers_run=sum(row.layers_run for row in first),
            num_drafted=sum(row.num_drafted or 0 for row in first),
            num_accepted=sum(row.num_accepted or 0 for row in first),
            decode_s=tuple(sum(row.decode_s for row in rows) for rows in by_repeat.values()),
        )

    @property
    def tokens_per_s(self) -> Spread:
        return Spread.of([self.num_tokens / decode_s for decode_s in self.decode_s] if self.num_tokens else [])

    @property
    def ms_per_round(self) -> Spread:
        return Spread.of([1e3 * decode_s / self.num_rounds for decode_s in self.decode_s] if self.num_rounds else [])


class FasterVanilla(NamedTuple):
    """The vanilla of the highest median rate over all prompts, and that of the least geometric mean time of a prompt."""

    in_all: str
    by_prompt: str

    @classmethod
    def of(cls, measured: Measurements, repeats: Mapping[str, Repeats]) -> "FasterVanilla":
        ran = [name for name in measured.subject.methods if METHODS[name].is_baseline]
        over_first = {name: _geomean_ratio(measured.rows, ran[0], name) or 0.0 for name in ran}
        return cls(
            in_all=max(ran, key=lambda name: repeats[name].tokens_per_s.median or 0.0),
            by_prompt=max(ran, key=lambda name: over_first[name]),
        )


def _speed(
    measured: Measurements, method: str, repeats: Repeats, faster: FasterVanilla, roofline: Roofline
) -> MethodSpeed:
    """The row of `method`, beside the `faster` vanillas and the `roofline`."""
    calls, parity, row = measured.counted.calls[method], measured.counted.parity[method], METHODS[method]
    rate, round_ms = repeats.tokens_per_s, repeats.ms_per_round
    tokens, num_rounds = repeats.num_tokens, repeats.num_rounds
    isolated_s = sum(count * measured.times[call].ms for call, count in calls.items()) / 1e3 if calls else None
    num_bytes = sum(count * measured.read_bytes(call) for call, count in calls.items())
    ceiling = tokens / isolated_s if isolated_s else None
    parts_ms = isolated_s * 1e3 / num_rounds if isolated_s and num_rounds else None
    bytes_per_token = num_bytes / tokens if num_bytes and tokens else None
    num_exact = sum(found.parity == "exact" for found in parity)
    return MethodSpeed(
        width=measured.subject.width_of(method),
        num_tokens=tokens,
        num_rounds=num_rounds,
        tokens_per_s=rate.median,
        tokens_per_s_min=rate.least,
        tokens_per_s_max=rate.most,
        ms_per_round=round_ms.median,
        ms_per_round_min=round_ms.least,
        ms_per_round_max=round_ms.most,
        tokens_per_round=_over(tokens, num_rounds),
        layers_per_token=_over(repeats.layers_run, tokens),
        num_drafted=repeats.num_drafted if row.drafts else None,
        acceptance_rate=None if row.is_lossy else _over(repeats.num_accepted, repeats.num_drafted),
        is_lossy=row.is_lossy,
        num_prompts=len(parity),
        num_parity_exact=num_exact,
        num_near_ties=sum(found.parity == "near_tie" for found in parity),
        num_logits_equal=sum(found.logits_equal is True for found in parity),
        is_exact=(
            num_exact == len(parity) and all(found.logits_equal is not False for found in parity) if parity else None
        ),
        speedup_over_faster_vanilla=_paired_ratio(measured.rows, faster.in_all, method),
        speedup_geomean=_geomean_ratio(measured.rows, faster.by_prompt, method),
        ceiling_tokens_per_s=ceiling,
        ceiling_share=_over(rate.median, ceiling),
        parts_ms_per_round=parts_ms,
        host_overhead_ms_per_round=None if parts_ms is None or round_ms.median is None else round_ms.median - parts_ms,
        read_bytes_per_token=bytes_per_token,
        bandwidth_share=_over((bytes_per_token or 0) * (rate.median or 0) or None, measured.bandwidth),
        roofline_share=_over(rate.median, roofline.vanilla_tokens_per_s),
    )


def _paired_ratio(rows: list[BenchRow], over: str, under: str) -> float | None:
    """The median over repeats of `over`'s decode time by `under`'s; above 1, `under` is faster."""
    sums: dict[int, dict[str, float]] = {}
    for row in rows:
        of_repeat = sums.setdefault(row.repeat, dict.fromkeys((over, under), 0.0))
        if row.method in of_repeat:
            of_repeat[row.method] += row.decode_s
    if any(of_repeat[under] == 0 for of_repeat in sums.values()):
        return None
    return statistics.median(of_repeat[over] / of_repeat[under] for of_repeat in sums.values())


def _geomean_ratio(rows: list[BenchRow], over: str, under: str) -> float | None:
    """The geometric mean over prompts of `over`'s median decode time by `under`'s; prompts of one token have none."""
    base_s, method_s = _median_decode_s(rows, over), _median_decode_s(rows, under)
    ratios = [
        base_s[prompt_idx] / of_prompt for prompt_idx, of_prompt in method_s.items() if of_prompt and base_s[prompt_idx]
    ]
    return statistics.geometric_mean(ratios) if ratios else None


def _median_decode_s(rows: list[BenchRow], method: str) -> dict[int, float]:
    """The median over repeats of `method`'s decode time, by prompt."""
    times: dict[int, list[float]] = {}
    for row in rows:
        if row.method == method:
            times.setdefault(row.prompt_idx, []).append(row.decode_s)
    return {prompt_idx: statistics.median(of_prompt) for prompt_idx, of_prompt in times.items()}


def _over(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _part(call: Call, time: CallTime, measured: Measurements, methods: Mapping[str, MethodSpeed]) -> PartTime:
    """A call, its time, and how often a round of each of `methods` makes it."""
    return PartTime(
        part=call.kind,
        width=call.width,
        rows=call.rows,
        layers=(call.start, call.stop) if call.kind == "layers" else None,
        exit_layer=call.start if call.kind == "test" else None,
        head=call.head,
        ms=time.ms,
        min_ms=time.min_ms,
        max_ms=time.max_ms,
        num_repetitions=time.num_repetitions,
        calls_per_round={
            method: of_method[call] / methods[method].num_rounds
            for method, of_method in measured.counted.calls.items()
            if of_method[call]
        },
    )
