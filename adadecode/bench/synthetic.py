"""Models of published sizes with made-up weights, to measure speed where the real weights cannot be had.

Speed depends on how often the exits agree with the last layer, so the weights are made to give that. Every token has two
successors; which of them wins is decided by random terms, most of them known before the first exit, the rest added by
the layers evenly. So a greedy continuation never stands still, its top-1 probabilities lie between 0.5 and 1, and exit
heads that are the identity are right on a share of the tokens that can be chosen.

In detail: token t has a random code p(t) and the embedding [p(t), q(t)], where q(t) is the sum of its two successors'
codes. A head that compares q(t) with every p scores both successors alike, far above all others, and a random part of
the head parts them. Where head and embedding are one matrix, the MLP of layer 1 brings q(t) to the place of p(t).

Everything here is synthetic: nothing it measures but time and memory says anything about the published models.
Shapes: V vocabulary, K tokens of the shortlist, d model width, F width of the MLP, L layers.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from adadecode.engine.policy import paper_exits
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.head_tensors import HeadTensors, Shortlist
from adadecode.model.shortlist import default_shortlist_len
from adadecode.settings import HeadKind

SUCCESSOR_LOGIT = 24.0  # of both successors; the best of 128 Ki others gets about 13
RANDOM_LOGIT_STD = 2.8  # so the two are 4 apart on average
SCORE_STD = 3.0  # of attention scores: a row attends to a few others, so the layers' part depends on the context
MIX_RMS = 0.6  # of a mean of standard normal values under such attention, and of silu(x) y of standard normal x, y
CONSTANT = 2.0  # in every embedding, for layer 1 of tied models
GATE = 4.0
REMOVED = 1.25  # times what layer 1 of tied models must take off; the mean square it counts on is not every token's


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


SHAPES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama-3.1-8b": (
        LlamaConfig,
        {
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128_256,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _llama3_rope(8.0),
        },
    ),
    "llama-3.2-1b": (
        LlamaConfig,
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128_256,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _llama3_rope(32.0),
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-8b": (
        Qwen3Config,
        {
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": 40_960,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
    ),
    "llama-160m": (
        LlamaConfig,
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "head_dim": 64,
            "vocab_size": 32_000,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    ),
}


@torch.no_grad()
def synthetic_lm(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    agreement: float = 0.85,
    seed: int = 0,
    **changed: Any,
) -> Any:
    """A transformers causal LM of the size `name`, with `changed` config values, its weights made on `device` in `dtype`.

    Identity heads at the first of the paper's exits agree with the last layer on about `agreement` of the tokens, in
    (0.7, 1), and later ones on more. It has no EOS.
    """
    config_type, values = SHAPES[name]
    usual: dict[str, Any] = {"tie_word_embeddings": False}
    usual |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config: Any = config_type(**{**usual, **values, **changed})
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lm.to_empty(device=device)
    lm.tie_weights()  # to_empty made two of one
    lm.model.rotary_emb = type(lm.model.rotary_emb)(config).to(device)
    generator = torch.Generator(device).manual_seed(seed)

    def fill(weight: Tensor, std: float) -> None:
        weight.normal_(0.0, std, generator=generator)

    width, half = config.hidden_size, config.hidden_size // 2
    _fill_embedding(lm.model.embed_tokens.weight, successors(config.vocab_size, seed), generator)
    lm.model.norm.weight.fill_(1.0)
    # logits of the successors' codes, and random ones, per element of a normed hidden state
    of_codes, of_random = SUCCESSOR_LOGIT * math.sqrt(2.0) / half, RANDOM_LOGIT_STD / math.sqrt(half)
    if config.tie_word_embeddings:
        lm.model.norm.weight[:half], lm.model.norm.weight[half:] = of_codes, of_random
        lm.model.norm.weight[0] = 0.0
    else:
        fill(lm.lm_head.weight[:, :half], of_random)
        torch.mul(lm.model.embed_tokens.weight[:, :half], of_codes, out=lm.lm_head.weight[:, half:])

    std = math.sqrt(layer_variance(config.num_hidden_layers, agreement) / 2)  # of attention, and of the MLP
    for layer_idx, layer in enumerate(lm.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.fill_(1.0)
        fill(attention.q_proj.weight, SCORE_STD / math.sqrt(width))
        fill(attention.k_proj.weight, 1.0 / math.sqrt(width))
        fill(attention.v_proj.weight, 1.0 / math.sqrt(width))
        fill(attention.o_proj.weight, std / MIX_RMS / math.sqrt(attention.o_proj.in_features))
        if hasattr(attention, "q_norm"):
            attention.q_norm.weight.fill_(SCORE_STD)
            attention.k_norm.weight.fill_(1.0)
        if config.tie_word_embeddings and layer_idx == 0:
            _fill_swap(mlp, width)
            continue
        fill(mlp.gate_proj.weight, 1.0 / math.sqrt(width))
        fill(mlp.up_proj.weight, 1.0 / math.sqrt(width))
        fill(mlp.down_proj.weight, std / MIX_RMS / math.sqrt(config.intermediate_size))
    return lm


def synthetic_heads(
    model: DecoderModel, exits: tuple[int, ...] | None, head: HeadKind = "full", gate: float = 0.0
) -> ExitHeads:
    """Identity heads at `exits` (the paper's when None), tested in full or over the first K tokens.

    Continuations of `synthetic_prompts` stay among those. At --gate 0.5
    gates skip half of the tests, at random: a stand-in for gates that know which are hopeless.
    """
    exits = exits or paper_exits(model.num_layers)

    def identity() -> Tensor:
        return torch.eye(model.width, dtype=model.dtype, device=model.device)

    shortlist = None
    if head == "shortlist":
        token_ids = torch.arange(default_shortlist_len(model.vocab_size), device=model.device)
        shortlist = Shortlist(token_ids, {e: model.weights.head.matrices[0][: len(token_ids)].clone() for e in exits})
    generator = torch.Generator().manual_seed(0)
    gates = {e: torch.randn(model.width + 1, generator=generator) / math.sqrt(model.width) for e in exits}
    return HeadTensors({e: (identity(),) for e in exits}, shortlist, gates).on(model, head, gate)


def synthetic_prompts(vocab_size: int, num_prompts: int, prompt_len: int, seed: int = 0) -> list[list[int]]:
    """Random token ids of the shortlist."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(default_shortlist_len(vocab_size), (num_prompts, prompt_len), generator=generator).tolist()


def successors(vocab_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """The two successors `[V]` of every token. Each leads through all K tokens of the shortlist, or through all others."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.empty(vocab_size, dtype=torch.long), torch.empty(vocab_size, dtype=torch.long)
    num_listed = default_shortlist_len(vocab_size)
    for successor in (first, second):
        for start, stop in ((0, num_listed), (num_listed, vocab_size)):
            order = start + torch.randperm(stop - start, generator=generator)
            successor[order] = order.roll(-1)
    return first, second


def layer_variance(num_layers: int, agreement: float) -> float:
    """What each layer adds to the variance of a hidden state of variance 1, for heads that agree so often.

    The sign of a sum of normal terms is the sign of a part of them with probability 1 - acos(r) / pi, where r is their
    correlation, the root of the part's share of the variance.
    """
    assert 0.7 < agreement < 1.0, agreement
    share = math.cos(math.pi * (1.0 - agreement)) ** 2
    early = paper_exits(num_layers)[0] / num_layers
    assert share > early, (agreement, num_layers)
    return (1.0 - share) / (share - early) / num_layers


def _fill_embedding(embedding: Tensor, pair: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    """[p(t), q(t)] for every token, `[V, d]`; element 0 is CONSTANT."""
    half = embedding.shape[1] // 2
    codes = embedding[:, :half]
    codes.normal_(generator=generator)
    codes[:, 0] = CONSTANT
    first, second = (successor.to(embedding.device) for successor in pair)
    embedding[:, half:] = (codes[first] + codes[second]) * math.sqrt(0.5)


def _fill_swap(mlp: Any, width: int) -> None:
    """Makes `mlp` turn [p, q] into [q, a permutation of p], on top of the residual connection.

    The gate reads CONSTANT, where silu is all but linear, so that the MLP is a linear map of its input.
    """
    half = width // 2
    places = torch.arange(half, device=mlp.up_proj.weight.device)
    for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight):
        weight.zero_()
    up = mlp.up_proj.weight
    up[places, places + half], up[places, places] = 1.0, -REMOVED
    up[places + half, places.roll(1)], up[places + half, places + half] = 1.0, -REMOVED
    mlp.gate_proj.weight[:width, 0] = GATE
    mean_square = 1.0 + 3.0 * CONSTANT**2 / width  # of an embedding: CONSTANT is in p once and in q times root 2
    rows = torch.arange(width, device=up.device)
    mlp.down_proj.weight[rows, rows] = mean_square / (GATE * CONSTANT)
