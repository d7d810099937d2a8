"""Tiny random models of every family and heads for them: the fakes that make the suite run on any laptop."""

from dataclasses import dataclass, field

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
EXTRA = {"mistral": {"sliding_window": None}, "qwen2": {"use_sliding_window": False}}


def tiny_lm(
    family: str = "llama",
    *,
    seed: int = 0,
    num_layers: int = 4,
    context_len: int = 1024,
    tied: bool = False,
    vocab_size: int = 97,
    eos_token_id: int | list[int] | None = None,
):
    """A random causal LM of `family`, float32, whose later layers add less and less, so that exits are often right."""
    config_type, lm_type = FAMILIES[family]
    config = config_type(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=context_len,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=None,
        **EXTRA.get(family, {}),
    )
    torch.manual_seed(seed)
    lm = lm_type(config)
    with torch.no_grad():
        for depth, layer in enumerate(lm.model.layers):
            layer.self_attn.o_proj.weight.mul_(0.6**depth)
            layer.mlp.down_proj.weight.mul_(0.6**depth)
    return lm


def tiny_model(family: str = "llama", *, dtype: torch.dtype = torch.float32, **settings) -> DecoderModel:
    """The decoder over `tiny_lm`, in `dtype`."""
    return DecoderModel(tiny_lm(family, **settings).to(dtype))


def random_heads(model: DecoderModel, exits: tuple[int, ...], seed: int = 0) -> ExitHeads:
    """Heads near the identity: sometimes right, often wrong, which is what a parity test wants."""
    generator = torch.Generator().manual_seed(seed)
    noise = {e: 0.1 * torch.randn(model.width, model.width, generator=generator) for e in exits}
    return ExitHeads(model, {e: torch.eye(model.width) + t for e, t in noise.items()})


@dataclass
class ScriptedExitHead:
    """Proposes at `exits` exactly what `script` says: position -> {exit layer: (token id, confidence)}."""

    exits: tuple[int, ...]
    script: dict[int, dict[int, tuple[int, float]]]
    asked: list[tuple[int, int]] = field(default_factory=list)

    def propose(self, exit_layer: int, hidden: torch.Tensor, row: int, position: int) -> tuple[int, float]:
        self.asked.append((position, exit_layer))
        return self.script.get(position, {}).get(exit_layer, (0, 0.0))
