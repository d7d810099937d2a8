"""A transformers causal LM as segments of layers and heads, at the static shapes of a decode step.

Shapes: T rows of a prompt, W rows of a step, S cache columns, d model width, V vocabulary, D head width.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from adadecode.config import Dtype, Kernels
from adadecode.demo import resolve_model
from adadecode.errors import KernelsError, UnsupportedModelError, UsageError
from adadecode.model.cuda_graphs import GraphedStep, graph_columns
from adadecode.model.kv_cache import COLUMN_MULTIPLE, KVCache, num_columns
from adadecode.model.layers import Head, LayerShape, fuse_layer, layer_step
from adadecode.model.native import DTYPES as NATIVE_DTYPES
from adadecode.model.native import NativeStep, NativeWeights, load_library
from adadecode.model.step import DecodeStep, EagerStep

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


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


def choose_kernels(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> Kernels:
    """What `auto` stands for on `device` in `dtype`; raises KernelsError when `kernels` cannot be had there."""
    can_be_native = device.type == "cpu" and dtype in NATIVE_DTYPES
    if kernels == "native":
        if not can_be_native:
            raise KernelsError(
                f"--kernels native: only on a CPU in float32 or bfloat16, not on {device.type} in {dtype}; "
                "use --kernels eager or compile"
            )
        load_library()
    if kernels != "auto":
        return kernels
    if can_be_native:
        try:
            load_library()
            return "native"
        except KernelsError:
            return "eager"
    return "eager"


def compile_layer_step() -> Callable[..., Tensor]:
    """`layer_step` compiled for static shapes: once per W and S, for all layers alike."""
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    return torch.compile(layer_step, dynamic=False, fullgraph=True)


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
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        refuse("biases of its attention or MLP are not added by the engine")
    if config.hidden_act != "silu":
        refuse(f"its activation {config.hidden_act!r} is not silu")
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
    model: str,
    *,
    dtype: Dtype = "bfloat16",
    device: str = "cpu",
    revision: str | None = None,
    kernels: Kernels = "auto",
) -> tuple[DecoderModel, PreTrainedTokenizerBase]:
    """The decoder and tokenizer of a path, a hub id or `demo`; raises UsageError or UnsupportedModelError."""
    transformers_logging.disable_progress_bar()
    source = resolve_model(model)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device 'cuda': no CUDA device is visible to this process; use --device cpu")
    _, tokenizer = load_tokenizer(model, revision)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=getattr(torch, dtype), output_loading_info=True
        )
        lm, loading = loaded
        if loading["missing_keys"]:  # transformers would go on with random weights
            raise ValueError(f"the checkpoint lacks {', '.join(sorted(loading['missing_keys']))}")
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_loadable(model, error) from error
    return DecoderModel(lm.to(device), kernels), tokenizer


def load_tokenizer(model: str, revision: str | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """transformers' configuration and the tokenizer of a model that `load_model` takes, without its weights."""
    source = resolve_model(model)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        check_supported(config)
        return config, AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise _not_loadable(model, error) from error


def _not_loadable(model: str, error: Exception) -> UsageError:
    reason = " ".join(str(error).split())[:200]
    return UsageError(
        f"--model {model!r} cannot be loaded; give `demo`, a folder with a transformers model, or a hub id ({reason})"
    )


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A 16-digit hash of the tokenizer's chat template, None when it has none."""
    template = tokenizer.chat_template
    return None if template is None else hashlib.sha256(json.dumps(template).encode()).hexdigest()[:16]
