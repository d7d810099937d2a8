"""What a bench measured, as values that bench.json and bench.parquet are dumped from; None is what was not measured.

Field names are the keys and columns on disk.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from adadecode.errors import EXIT_MISMATCH, EXIT_OK


@dataclass(frozen=True)
class BenchRow:
    """One measured generation, the `order_idx`-th of its prompt and repeat; drafts only where the method drafts."""

    method: str
    width: int | None
    task: str
    prompt_idx: int
    repeat: int
    order_idx: int
    prompt_len: int
    output_len: int
    num_rounds: int
    layers_run: int
    num_drafted: int | None
    num_accepted: int | None
    ttft_s: float
    decode_s: float


@dataclass(frozen=True)
class MethodSpeed:
    """How fast one method decoded all prompts, and how much of that its decode steps explain.

    Tokens come after the first of each output. Rates are medians over the repeats with their extremes. `parts` are the
    calls of its rounds, each timed alone; the ceiling is the speed if there was nothing between them, the roofline what
    the device's memory allows vanilla. `is_exact` says whether tokens and logits were vanilla's on every prompt, None where
    nothing was compared.
    """

    width: int | None
    num_tokens: int
    num_rounds: int
    tokens_per_s: float | None
    tokens_per_s_min: float | None
    tokens_per_s_max: float | None
    ms_per_round: float | None
    ms_per_round_min: float | None
    ms_per_round_max: float | None
    tokens_per_round: float | None
    layers_per_token: float | None
    num_drafted: int | None
    acceptance_rate: float | None
    is_lossy: bool
    num_prompts: int
    num_parity_exact: int
    num_near_ties: int
    num_logits_equal: int
    is_exact: bool | None
    speedup_over_faster_vanilla: float | None
    speedup_geomean: float | None
    ceiling_tokens_per_s: float | None
    ceiling_share: float | None
    parts_ms_per_round: float | None
    host_overhead_ms_per_round: float | None
    read_bytes_per_token: float | None
    bandwidth_share: float | None
    roofline_share: float | None


@dataclass(frozen=True)
class PartTime:
    """One call of a round, timed alone in milliseconds, and how often a round of each method makes it.

    `layers` [start, stop) are those of a segment; `exit_layer` and `head` belong to a test.
    """

    part: Literal["enter", "layers", "test", "verify"]
    width: int
    rows: int
    layers: tuple[int, int] | None
    exit_layer: int | None
    head: Literal["full", "shortlist", "gate"] | None
    ms: float
    min_ms: float
    max_ms: float
    num_repetitions: int
    calls_per_round: dict[str, float]


@dataclass(frozen=True)
class Memory:
    """Bytes of the weights, of the heads beside them, of keys and values, and at the peak of device and process.

    `draft_model_bytes` are its weights and its keys and values; None without a draft model. `medusa_heads_bytes` are of
    Medusa heads with the rows of the LM head cut out for them; None without any.
    """

    weights_bytes: int
    heads_bytes: int
    kv_bytes: int
    draft_model_bytes: int | None
    medusa_heads_bytes: int | None
    peak_device_bytes: int | None
    peak_device_reserved_bytes: int | None
    peak_rss_bytes: int


@dataclass(frozen=True)
class Roofline:
    """Vanilla's speed if a step took no longer than the machine takes to move what it must read.

    The bandwidth is that of a large copy on a CUDA device, and of reading as much as a step does on a CPU with native
    kernels; elsewhere it is not measured.
    """

    bandwidth_bytes_per_s: float | None
    vanilla_step_read_bytes: int
    vanilla_tokens_per_s: float | None


@dataclass(frozen=True)
class BenchMachine:
    """Where and with what it was measured; hashes of heads are by task."""

    device: str
    driver: str | None
    cuda: str | None
    python: str
    dtype: str
    threads: int
    kernels: str
    attention: str | None  # who computes it in decode steps; None where that is torch's choice
    float32_precision: str
    reduced_precision_sums: bool
    width: int
    num_layers: int
    model_hash: str
    draft_model_hash: str | None
    medusa_heads_hash: dict[str, str | None]
    heads_hash: dict[str, str | None]
    foreign_heads: dict[str, str]  # per task the weights they were made for, where those are another model's
    foreign_medusa_heads: dict[str, str]
    policy: dict[str, Any]


@dataclass(frozen=True)
class BenchResult:
    """All that `bench` found: a row per method by its name, the parts of their rounds, and where that was.

    `parity` is over the methods that owe vanilla's output, None without one; `never_fires_cost` what testing exits that
    never fire takes of vanilla's time. Each speedup is over the vanilla that is faster by it.
    """

    bench: str
    synthetic: bool
    parity: Literal["exact", "broken"] | None
    methods: dict[str, MethodSpeed]
    faster_vanilla: str
    faster_vanilla_geomean: str
    never_fires_cost: float | None
    parts: tuple[PartTime, ...]
    memory: Memory
    roofline: Roofline
    machine: BenchMachine
    settings: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """3 when a method that owes vanilla's output gave another."""
        return EXIT_MISMATCH if self.parity == "broken" else EXIT_OK

    def to_json(self) -> dict[str, Any]:
        """The object that bench.json holds."""
        return asdict(self)
