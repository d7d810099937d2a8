"""A transformers causal LM as segments of layers and heads, at the static shapes of a decode step.

Shapes: T rows of a prompt, W rows of a step, S cache columns, d model width, V vocabulary, D head width.
"""

import functools
import hashlib
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from adadecode.kernels.choose import choose_kernels, compile_layer_step
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.graphed import GraphedStep, graph_columns
from adadecode.kernels.kv_cache import COLUMN_MULTIPLE, KVCache, num_columns
from adadecode.kernels.layers import layer_step
from adadecode.kernels.native import NativeStep, NativeWeights
from adadecode.kernels.step import DecodeStep
from adadecode.kernels.weights import Head, LayerShape
from adadecode.model.families import check_supported, fuse_layer
from adadecode.settings import Kernels


class DecoderModel:
    """Embedding, layers and head of a frozen causal LM. Holds no decoding state."""

    def __init__(self, lm: Any, kernels: Kernels = "eager") -> None:
        """Wraps `lm`, a loaded transformers causal LM, to decode with `kernels`; `auto` takes the fastest there are.

        Raises UnsupportedModelError when the engine cannot decode it, KernelsError when it cannot do so with `kernels`.
        """
        check_supported(lm.config)
        self.lm = lm.eval().requires_grad_(False)
        self.config = config = lm.config
        self.num_layers: int = config.num_hidden_layers
        self.vocab_size: int = config.vocab_size
        self.context_len: int = config.max_position_embeddings
        self.eos_token_ids = _eos_token_ids(lm)
        lm.generation_config = GenerationConfig()  # greedy means greedy: no penalties from the model's own defaults
        self.model_hash = hash_weights(lm)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = LayerShape(config.num_attention_heads, config.num_key_value_heads, head_dim, config.rms_norm_eps)
        self.layers = [fuse_layer(layer) for layer in lm.model.layers]
        self.head = Head((lm.lm_head.weight,))
        self.kernels = choose_kernels(kernels, self.device, self.dtype)
        self.native = NativeWeights(self) if self.kernels == "native" else None
        self.layer_step = compile_layer_step() if self.kernels == "compile" else layer_step
        self.compiled_shapes: set[tuple[int, int]] = set()  # W and S
        self._graphs: dict[tuple[int, int], GraphedStep] = {}

    @functools.cached_property
    def graph_pool(self) -> Any:
        """The memory that all CUDA graphs of this model share."""
        return torch.cuda.graph_pool_handle()

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

    @property
    def norm(self) -> Tensor:
        """The weight `[d]` of the model's last normalisation."""
        return self.lm.model.norm.weight

    @functools.cached_property
    def rotary(self) -> tuple[Tensor, Tensor]:
        """Cos and sin `[positions, D]` of every position in the context, in the model's dtype."""
        like = torch.zeros(1, dtype=self.dtype, device=self.device)
        positions = torch.arange(self.context_len + COLUMN_MULTIPLE + 1, device=self.device)
        cos, sin = self.lm.model.rotary_emb(like, position_ids=positions[None])
        return cos[0], sin[0]

    def new_cache(self, num_columns: int) -> KVCache:
        """Zeroed keys and values with S = `num_columns`."""
        shape = self.shape
        return KVCache(self.num_layers, shape.num_kv_heads, shape.head_dim, num_columns, self.lm.lm_head.weight)

    def new_step(self, width: int, num_positions: int) -> DecodeStep:
        """The decode step of one request: W = `width` rows over columns for `num_positions` positions.

        On a CUDA device steps of one shape share their buffers and graphs: one request decodes at a time.
        """
        if self.kernels == "native":
            return NativeStep(self, width, num_columns(num_positions))
        if self.device.type != "cuda":
            columns = graph_columns if self.kernels == "compile" else num_columns
            return EagerStep(self, width, columns(num_positions))
        key = (width, graph_columns(num_positions))
        if key not in self._graphs:
            self._graphs[key] = GraphedStep(self, *key)
        return self._graphs[key]

    def drop_steps(self) -> None:
        """Lets go of the steps that requests of one shape share, with their buffers and graphs."""
        self._graphs.clear()
        self.__dict__.pop("graph_pool", None)  # it ended with the last graph

    def embed(self, token_ids: Tensor) -> Tensor:
        """Hidden states `[T, d]` of `token_ids` `[T]` before layer 1."""
        return self.lm.model.embed_tokens(token_ids)

    def prefill(self, prompt_ids: Tensor, cache: KVCache) -> Tensor:
        """Runs the prompt `[T]` through transformers' layers, fills `cache`, returns the last row's logits `[V]`."""
        hidden = self.embed(prompt_ids)[None]
        positions = torch.arange(len(prompt_ids), device=self.device)[None]
        rotary = self.lm.model.rotary_emb(hidden, position_ids=positions)
        for layer in self.lm.model.layers:
            hidden = layer(hidden, past_key_values=cache, position_embeddings=rotary)
        return self.lm_head(hidden[0, -1:])[0]

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The model's last normalisation of `hidden` `[T, d]`."""
        return self.lm.model.norm(hidden)

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits `[T, V]` of hidden states `[T, d]` that have passed all L layers."""
        return self.lm.lm_head(self.final_norm(hidden))


def _eos_token_ids(lm: Any) -> frozenset[int]:
    """Every id that ends a sequence, from the generation config or else the model config; may be empty."""
    found = lm.generation_config.eos_token_id
    if found is None:
        found = lm.config.eos_token_id
    return frozenset() if found is None else frozenset([found] if isinstance(found, int) else found)


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
