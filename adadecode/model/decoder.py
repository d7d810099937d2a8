"""A transformers causal LM as segments of layers and heads, at the static shapes of a decode step.

Shapes: T rows of a prompt, W rows of a step, d model width, V vocabulary, D head width.
"""

import functools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from adadecode.files import short_hash
from adadecode.kernels.choose import Steps
from adadecode.kernels.kv_cache import COLUMN_MULTIPLE, KVCache
from adadecode.kernels.stages import Stage
from adadecode.kernels.step import DecodeStep
from adadecode.kernels.weights import Head, LayerShape, Weights
from adadecode.model.families import check_supported, read_layers
from adadecode.records import ChosenKernels
from adadecode.settings import Kernels


class DecoderModel:
    """A frozen causal LM: its weights, facts about it, and the steps that decode with it. Holds no decoding state."""

    def __init__(
        self, lm: Any, kernels: Kernels = "eager", notes: tuple[str, ...] = (), stages: tuple[Stage, ...] = ()
    ) -> None:
        """Wraps `lm`, a loaded transformers causal LM, to decode with `kernels`; `auto` takes the fastest there are.

        `notes` say what was odd about its files, `stages` which layers are on which of several devices. Raises
        UnsupportedModelError when the engine cannot decode it, KernelsError when it cannot do so with `kernels`.
        """
        check_supported(lm.config)
        self.notes = notes
        self.lm = lm.eval().requires_grad_(False)
        self.config = config = lm.config
        self.num_layers: int = config.num_hidden_layers
        self.vocab_size: int = config.vocab_size
        self.context_len: int = config.max_position_embeddings
        self.eos_token_ids = _eos_token_ids(lm)
        lm.generation_config = GenerationConfig()  # greedy means greedy: no penalties from the model's own defaults
        self.model_hash = hash_weights(lm)
        self.weights = read_weights(lm, stages)
        # of lm alone: a prefill that knew the decoder would keep it in memory, in a circle
        self.steps = Steps(self.weights, functools.partial(prefill, lm), kernels)

    @property
    def kernels(self) -> str:
        """What computes its decode steps; never `auto`."""
        return self.chosen_kernels.kernels

    @property
    def chosen_kernels(self) -> ChosenKernels:
        """What computes its decode steps, and why `auto` came to slower kernels than there can be."""
        return self.steps.chosen

    @property
    def device(self) -> torch.device:
        """Where all of it is; of a model on several devices the first, home, where whatever is no layer is."""
        return self.weights.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All that its layers are on, home first."""
        return tuple(dict.fromkeys(stage.device for stage in self.weights.stages)) or (self.device,)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    @property
    def width(self) -> int:
        """d, the width of a hidden state."""
        return self.weights.width

    def new_step(self, width: int, num_positions: int) -> DecodeStep:
        """The decode step of one request: W = `width` rows over columns for `num_positions` positions.

        Graphed steps, and the cache of their S, are shared by requests: one decodes at a time.
        """
        return self.steps.new(width, num_positions)

    def num_columns(self, num_positions: int) -> int:
        """S, the cache columns that `new_step` gives a request of `num_positions` positions."""
        return self.steps.num_columns(num_positions)

    def drop_steps(self) -> None:
        """Lets go of the steps that requests share, with their buffers and graphs."""
        self.steps.drop()

    def embed(self, token_ids: Tensor) -> Tensor:
        """Hidden states `[T, d]` of `token_ids` `[T]` before layer 1."""
        return self.lm.model.embed_tokens(token_ids)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The model's last normalisation of `hidden` `[T, d]`."""
        return self.lm.model.norm(hidden)

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits `[T, V]` of hidden states `[T, d]` that have passed all L layers."""
        return self.lm.lm_head(self.final_norm(hidden))


def read_weights(lm: Any, stages: tuple[Stage, ...] = ()) -> Weights:
    """The weights of `lm`, in `stages` where it is on several devices; its projections become views of the joined ones.

    So they are in memory once.
    """
    config, head = lm.config, lm.lm_head.weight
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    positions = torch.arange(config.max_position_embeddings + COLUMN_MULTIPLE + 1, device=head.device)
    like = torch.zeros(1, dtype=head.dtype, device=head.device)
    cos, sin = lm.model.rotary_emb(like, position_ids=positions[None])
    return Weights(
        embedding=lm.model.embed_tokens.weight,
        layers=read_layers(lm),
        norm=lm.model.norm.weight,
        head=Head((head,)),
        rotaries=((cos[0], sin[0]),),
        shape=LayerShape(config.num_attention_heads, config.num_key_value_heads, head_dim, config.rms_norm_eps),
        context_len=config.max_position_embeddings,
        stages=stages,
    )


def prefill(
    lm: Any, prompt_ids: Tensor, cache: KVCache, kept: Collection[int] = ()
) -> tuple[Tensor, dict[int, Tensor]]:
    """Runs the prompt `[T]` through the layers of `lm` and fills `cache`.

    Returns the last row's logits `[V]`, and the hidden states `[T, d]` after as many layers as each of `kept` says.
    """
    hidden = lm.model.embed_tokens(prompt_ids)[None]
    positions = torch.arange(len(prompt_ids), device=hidden.device)[None]
    rotary = lm.model.rotary_emb(hidden, position_ids=positions)
    hidden_after: dict[int, Tensor] = {}
    for num_passed, layer in enumerate(lm.model.layers, start=1):
        hidden = layer(hidden, past_key_values=cache, position_embeddings=rotary)
        if num_passed in kept:
            hidden_after[num_passed] = hidden[0]
    return lm.lm_head(lm.model.norm(hidden[0, -1:]))[0], hidden_after


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
    parts = []
    for name, parameter in sorted(lm.named_parameters()):
        flat = parameter.detach().flatten()
        picked = flat[:: max(1, flat.numel() // 256)][:256].to(torch.bfloat16).float().mul(1024).round().int()
        parts.append(f"{name} {list(parameter.shape)} {picked.tolist()}")
    return short_hash(*parts)
