"""A transformers causal LM as embed, run layers [start, stop), and head, at the static shapes of a decode step.

Shapes: W rows of a step, T rows of a prompt, S cache columns, d model width, V vocabulary, D head width, H query heads,
G key/value heads. The batch dimension of transformers' layers is 1 and rows are its sequence.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from adadecode.config import Dtype
from adadecode.demo import resolve_model
from adadecode.errors import UnsupportedModelError, UsageError
from adadecode.model.kv_cache import KVCache

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ATTENTION = "adadecode_static"


def _static_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Attention of `query` `[1, H, T, D]` over `key`, `value` `[1, G, S, D]`; returns `[1, T, H, D]`.

    The H/G query heads that share keys are folded into rows, so keys are never repeated. Without a mask it is the
    causal attention of a prefill.
    """
    num_heads, num_rows, head_dim = query.shape[1:]
    num_groups = key.shape[1]
    if mask is None:
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=num_heads != num_groups
        )
        return out.transpose(1, 2), None
    folded = query.reshape(1, num_groups, num_heads // num_groups * num_rows, head_dim)
    out = nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(1, num_heads, num_rows, head_dim).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _static_attention)


@dataclass(frozen=True)
class StepInputs:
    """What every segment of one round shares: rows stand at consecutive positions from the round's first.

    positions `[W]`; rotary cos and sin `[1, W, D]`; mask `[1, 1, H/G * W, S]`, additive, row i seeing columns up to its
    own position.
    """

    positions: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor


class DecoderModel:
    """Embedding, layers and head of a frozen causal LM. Holds no decoding state."""

    def __init__(self, lm: Any) -> None:
        """Wraps `lm`, a loaded transformers causal LM; raises UnsupportedModelError when the engine cannot decode it."""
        check_supported(lm.config)
        self.lm = lm.eval().requires_grad_(False)
        self.config = lm.config
        self.config._attn_implementation = ATTENTION
        self.num_layers: int = lm.config.num_hidden_layers
        self.vocab_size: int = lm.config.vocab_size
        self.context_len: int = lm.config.max_position_embeddings
        self.head_dim: int = getattr(lm.config, "head_dim", None) or (
            lm.config.hidden_size // lm.config.num_attention_heads
        )
        self.eos_token_ids = _eos_token_ids(lm)
        lm.generation_config = GenerationConfig()  # greedy means greedy: no penalties from the model's own defaults
        self._layers = list(lm.model.layers)
        self.model_hash = hash_weights(lm)

    @property
    def device(self) -> torch.device:
        return self.lm.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm.lm_head.weight.dtype

    @property
    def width(self) -> int:
        """d, the width of a hidden state."""
        return self.config.hidden_size

    def new_cache(self, num_positions: int) -> KVCache:
        """Zeroed keys and values for `num_positions` positions."""
        return KVCache(
            self.num_layers, self.config.num_key_value_heads, self.head_dim, num_positions, self.lm.lm_head.weight
        )

    def step_inputs(self, first_position: int, width: int, cache: KVCache) -> StepInputs:
        """Positions, rotary tables and mask for W = `width` rows from `first_position` on.

        Rows past the cache are clamped to the scratch column; they never take part in a step.
        """
        device = self.device
        positions = torch.arange(first_position, first_position + width, device=device).clamp_(max=cache.scratch)
        columns = torch.arange(cache.num_columns, device=device)
        mask = torch.zeros(width, cache.num_columns, dtype=self.dtype, device=device)
        mask.masked_fill_(columns > positions[:, None], float("-inf"))
        mask = mask.repeat(self.config.num_attention_heads // self.config.num_key_value_heads, 1)
        rotary = self.lm.model.rotary_emb(mask, position_ids=positions[None])
        return StepInputs(positions, rotary, mask[None, None])

    def embed(self, token_ids: Tensor) -> Tensor:
        """Hidden states `[T, d]` of `token_ids` `[T]` before layer 1."""
        return self.lm.model.embed_tokens(token_ids)

    def prefill(self, prompt_ids: Tensor, cache: KVCache) -> Tensor:
        """Runs the prompt `[T]` through every layer, fills `cache`, returns the last row's logits `[V]`."""
        hidden = self.embed(prompt_ids)[None]
        positions = torch.arange(len(prompt_ids), device=self.device)[None]
        rotary = self.lm.model.rotary_emb(hidden, position_ids=positions)
        cache.prefill(len(prompt_ids))
        for layer in self._layers:
            hidden = layer(hidden, past_key_values=cache, position_embeddings=rotary)
        return self.lm_head(hidden[0, -1:])[0]

    def run_layers(
        self, hidden: Tensor, start: int, stop: int, active: Tensor, step: StepInputs, cache: KVCache
    ) -> Tensor:
        """Runs the `active` (`[W]` bool) rows of `hidden` `[W, d]` through layers [start, stop); other rows keep theirs.

        Inactive rows enter as zeros, so nothing they compute can overflow, and write to the scratch column.
        """
        cache.decode_at(torch.where(active, step.positions, cache.scratch))
        active = active[:, None]
        out = torch.where(active, hidden, 0.0)[None]
        for layer in self._layers[start:stop]:
            out = layer(out, attention_mask=step.mask, past_key_values=cache, position_embeddings=step.rotary)
        return torch.where(active, out[0], hidden)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The model's last normalisation of `hidden` `[T, d]`."""
        return self.lm.model.norm(hidden)

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits `[T, V]` of hidden states `[T, d]` that have passed all L layers."""
        return self.lm.lm_head(self.final_norm(hidden))

    @contextmanager
    def transformers_attention(self) -> Iterator[None]:
        """Within it the wrapped model attends as transformers would, batches and padding too; then as the engine."""
        self.config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            self.config._attn_implementation = ATTENTION


def _eos_token_ids(lm: Any) -> frozenset[int]:
    """Every id that ends a sequence, from the generation config or else the model config; may be empty."""
    found = lm.generation_config.eos_token_id
    if found is None:
        found = lm.config.eos_token_id
    return frozenset() if found is None else frozenset([found] if isinstance(found, int) else found)


def check_supported(config: Any) -> None:
    """Raises UnsupportedModelError when `config` asks for something the engine does not do."""

    def refuse(what: str) -> None:
        raise UnsupportedModelError(f"model type {config.model_type!r}: {what}; supported are {', '.join(FAMILIES)}")

    if getattr(config, "is_encoder_decoder", False):
        refuse("encoder-decoder models are not decoded here")
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        refuse("mixture-of-experts routing depends on the other rows of a step")
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        refuse("soft-capped logits are not done by the engine")
    if config.model_type not in FAMILIES:
        refuse("its layers are not known to the engine")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        refuse(f"sliding-window attention over {window} positions is not done by the engine")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        refuse(f"rotary type {rope!r} changes with the sequence length")


def hash_weights(lm: Any) -> str:
    """A 16-digit hash that tells one set of weights from another.

    It is the same in every dtype a half-precision checkpoint is loaded in; a float32 checkpoint loaded in float16 gives
    another one than in bfloat16, because its weights are rounded twice.

    Every parameter adds its name, shape and up to 256 evenly spaced elements, rounded to multiples of 2**-10.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(lm.named_parameters()):
        flat = parameter.detach().flatten()
        picked = flat[:: max(1, flat.numel() // 256)][:256].to(torch.bfloat16).float().mul(1024).round().int()
        digest.update(f"{name} {list(parameter.shape)} {picked.tolist()}".encode())
    return digest.hexdigest()[:16]


def load_model(
    model: str, *, dtype: Dtype = "bfloat16", device: str = "cpu", revision: str | None = None
) -> tuple[DecoderModel, PreTrainedTokenizerBase]:
    """The decoder and tokenizer of a path, a hub id or `demo`; raises UsageError or UnsupportedModelError."""
    transformers_logging.disable_progress_bar()
    source = resolve_model(model)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device 'cuda': no CUDA device is visible to this process; use --device cpu")
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        check_supported(config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=getattr(torch, dtype), output_loading_info=True
        )
        lm, loading = loaded
        if loading["missing_keys"]:  # transformers would go on with random weights
            raise ValueError(f"the checkpoint lacks {', '.join(sorted(loading['missing_keys']))}")
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, UsageError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"--model {model!r} cannot be loaded; give `demo`, a folder with a transformers model, or a hub id ({reason})"
        ) from error
    return DecoderModel(lm.to(device)), tokenizer


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A 16-digit hash of the tokenizer's chat template, None when it has none."""
    template = tokenizer.chat_template
    return None if template is None else hashlib.sha256(json.dumps(template).encode()).hexdigest()[:16]
