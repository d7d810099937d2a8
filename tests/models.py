"""Tiny random models of every family and heads for them: the fakes that make the suite run on any laptop."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

from adadecode.engine.generate import Request, generate
from adadecode.engine.round import Round
from adadecode.engine.stop_strings import StopStrings
from adadecode.kernels.step import DecodeStep, Segment
from adadecode.kernels.weights import LayerWeights
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.head_tensors import HeadTensors, Shortlist
from adadecode.model.medusa_heads import MedusaHeads, MedusaTensors
from adadecode.model.ngram_store import NgramStore
from adadecode.model.parts import read_layer
from adadecode.model.placement import place
from adadecode.settings import Kernels
from adadecode.training.ngrams import build_nodes
from adadecode.training.outputs import GreedyOutput

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
# What else is decoded, with windows of 8 positions, caps and scales that tell at these sizes.
OTHERS = {
    "phi3": (Phi3Config, Phi3ForCausalLM),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM),
    "granite": (GraniteConfig, GraniteForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
    "stablelm": (StableLmConfig, StableLmForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM),
}
# All that a property test draws from: mistral with a window as well.
ANY_FAMILY = FAMILIES | OTHERS | {"mistral, windowed": FAMILIES["mistral"]}
TYPES = ["sliding_attention", "full_attention"] * 4
LACKED = {"gpt_neox": ("num_key_value_heads", "head_dim")}
EXTRA: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "mistral, windowed": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": False},
    "phi3": {"sliding_window": 8, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.7,
        "logits_scaling": 1.7,
    },
    "smollm3": {"use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2},
    "stablelm": {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "gemma2": {
        "layer_types": TYPES,
        "sliding_window": 8,
        "query_pre_attn_scalar": 6,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3_text": {
        "layer_types": TYPES,
        "sliding_window": 8,
        "query_pre_attn_scalar": 6,
        "final_logit_softcapping": 4.0,
    },
    "gpt_neox": {"rotary_pct": 0.5},
}

HAS_COMPILER = any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++")))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler on this machine for the native kernels")


def _kernels_param(kernels: str, *others: Any) -> Any:
    marks = needs_compiler if kernels == "native" else ()
    return pytest.param(kernels, *others, marks=marks, id="-".join(str(name) for name in (kernels, *others)))


KERNELS = [_kernels_param("native"), _kernels_param("eager")]
NATIVE_DTYPES = [_kernels_param("native", dtype) for dtype in (torch.float32, torch.bfloat16)]
EAGER_DTYPES = [_kernels_param("eager", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
KERNELS_AND_DTYPES = NATIVE_DTYPES + EAGER_DTYPES


def letters_stop(string: str) -> StopStrings:
    """`string` as a stop string, where token i is a letter, the (i mod 5)-th."""
    return StopStrings((string,), lambda token_ids: "".join("abcde"[token_id % 5] for token_id in token_ids))


def tiny_lm(
    family: str = "llama",
    *,
    seed: int = 0,
    num_layers: int = 4,
    context_len: int = 1024,
    tied: bool = False,
    vocab_size: int = 97,
    eos_token_id: int | list[int] | None = None,
    **config: Any,
) -> Any:
    """A random causal LM of `family`, float32, whose later layers add less and less, so that exits are often right.

    `config` replaces sizes of its configuration, such as `hidden_size`.
    """
    config_type, lm_type = ANY_FAMILY[family]
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": context_len,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    given: dict[str, Any] = sizes | EXTRA.get(family, {}) | config
    if "layer_types" in given:
        given["layer_types"] = given["layer_types"][:num_layers]
    lm: Any = lm_type(
        config_type(**{name: value for name, value in given.items() if name not in LACKED.get(family, ())})
    )
    with torch.no_grad():
        if family in OTHERS or "mlp_bias" in config:  # fresh norms are all 1 or 0, and fresh biases 0
            for parameter in (parameter for parameter in lm.parameters() if parameter.dim() == 1):
                parameter.add_(0.1 * torch.randn(parameter.shape))
        for depth, layer in enumerate(lm.base_model.layers):
            weights = read_layer(lm, layer)
            last = [weights.attention_out_norm, weights.mlp_out_norm]
            for out in (*(weights.o, weights.down), *[norm for norm in last if norm is not None]):
                out.mul_(0.6**depth)
    return lm


def tiny_model(
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = "eager",
    num_stages: int = 1,
    **settings: Any,
) -> DecoderModel:
    """The decoder over `tiny_lm`, in `dtype`, with `kernels`; its layers in so many stages, all on the CPU."""
    lm = tiny_lm(family, **settings).to(dtype)
    return DecoderModel(lm, kernels, stages=place(lm, [torch.device("cpu")] * num_stages))


def random_heads(
    model: DecoderModel,
    exits: tuple[int, ...],
    seed: int = 0,
    *,
    gates: dict[int, torch.Tensor] | None = None,
    gate: float = 0.0,
) -> ExitHeads:
    """Heads near the identity: sometimes right, often wrong, which is what a parity test wants."""
    parts = {e: (transform,) for e, transform in random_transforms(model, exits, seed).items()}
    return HeadTensors(parts, gates=gates or {}).on(model, gate=gate)


def random_transforms(model: DecoderModel, exits: tuple[int, ...], seed: int = 0) -> dict[int, torch.Tensor]:
    """T(e) `[d, d]` near the identity for each of `exits`."""
    generator = torch.Generator().manual_seed(seed)
    noise = {e: 0.1 * torch.randn(model.width, model.width, generator=generator) for e in exits}
    return {e: torch.eye(model.width) + t for e, t in noise.items()}


def random_gates(model: DecoderModel, exits: tuple[int, ...], seed: int = 0) -> dict[int, torch.Tensor]:
    """Gates `[d + 1]` that let about half of the tests pass."""
    generator = torch.Generator().manual_seed(seed)
    return {e: torch.randn(model.width + 1, generator=generator) / 4 for e in exits}


def block_heads(model: DecoderModel, exits: tuple[int, ...], num_tokens: int = 61, seed: int = 0) -> ExitHeads:
    """Heads over the first tokens, each with a random layer of its own."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(weights: torch.Tensor | None) -> torch.Tensor | None:
        if weights is None:
            return None
        return weights + 0.1 * torch.randn(weights.shape, generator=generator).to(weights)

    blocks = {e: LayerWeights(**{n: noisy(t) for n, t in vars(model.weights.layers[-1]).items()}) for e in exits}
    parts = {e: (transform,) for e, transform in random_transforms(model, exits, seed).items()}
    shortlist = Shortlist(torch.arange(num_tokens), {})
    return HeadTensors(parts, shortlist, kind="block", blocks=blocks).on(model, "shortlist")


def medusa_heads(
    model: DecoderModel, num_heads: int = 4, *, noise: float = 0.1, num_tokens: int | None = None, seed: int = 0
) -> MedusaHeads:
    """Medusa heads over the first tokens: without `noise` each tells the very token that the state predicts."""
    generator = torch.Generator().manual_seed(seed)
    residuals = noise * torch.randn(num_heads, model.width, model.width, generator=generator)
    token_ids = torch.arange(num_tokens or model.vocab_size)
    return MedusaTensors(residuals, token_ids, torch.ones(num_heads)).on(model)


def shortlist_of(
    model: DecoderModel, transforms: dict[int, torch.Tensor], token_ids: Sequence[int] | torch.Tensor
) -> Shortlist:
    """The heads of `transforms` over `token_ids` alone."""
    token_ids = torch.as_tensor(token_ids)
    rows = model.weights.head.matrices[0].float()[token_ids]
    return Shortlist(token_ids, {e: rows @ transform for e, transform in transforms.items()})


def store_of(model: DecoderModel, prompts: Sequence[list[int]], max_new_tokens: int = 24) -> NgramStore:
    """The n-gram store of what `model` continues `prompts` with, each of them taken for two."""
    outputs = [
        GreedyOutput(prompt, list(generate(model, Request(prompt, max_new_tokens)).generation.output_token_ids))
        for prompt in prompts
    ]
    return NgramStore(build_nodes([*outputs, *outputs], 10_000))


@dataclass
class ScriptedExitHead:
    """Proposes at `exits` exactly what `script` says: position -> {exit layer: (token id, confidence)}.

    None in place of a proposal skips the test when its position is the last one asked about. `asked` records each test:
    its positions, the last of which is the current token's, and its exit layer.
    """

    exits: tuple[int, ...]
    script: Mapping[int, Mapping[int, tuple[int, float] | None]]
    asked: list[tuple[range, int]] = field(default_factory=list)

    def drafters(self, gamma: float = 0.5) -> tuple["ScriptedDrafter", ...]:
        return tuple(ScriptedDrafter(exit_layer, gamma, self) for exit_layer in self.exits)


@dataclass
class ScriptedDrafter:
    """The scripted head at one exit."""

    boundary: int
    gamma: float
    heads: ScriptedExitHead

    tests: tuple = ()

    def extend(self, token_ids: list[int]) -> None:
        """Does nothing: a script goes by positions."""

    def propose(
        self, step: DecodeStep, round_: Round, segment: Segment, first_tested: int
    ) -> list[tuple[int, float]] | None:
        assert segment.stop == self.boundary
        step.run(*segment)
        positions = range(round_.first_position + first_tested, round_.first_position + segment.hi)
        assert len(positions) > 0, (segment, first_tested)
        self.heads.asked.append((positions, segment.stop))
        said = [self.heads.script.get(position, {}).get(segment.stop, (0, 0.0)) for position in positions]
        return None if said[-1] is None else [(0, 0.0) if proposal is None else proposal for proposal in said]
