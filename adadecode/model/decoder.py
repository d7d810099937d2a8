"""A transformers causal LM as segments of layers and heads, at the static shapes of a decode step.

Shapes: B sequences, T rows of a prompt, W rows of a step, d model width, V vocabulary, K outputs of a head.
"""

import functools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from adadecode.files import short_hash
from adadecode.kernels.choose import Steps
from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.layers import embed, finished
from adadecode.kernels.stages import Stage
from adadecode.kernels.step import DecodeStep
from adadecode.kernels.weights import Weights
from adadecode.model.families import check_one_device, check_supported, context_len, is_borrowed, why_borrowed
from adadecode.model.own_layers import OwnLayers, borrow_weights
from adadecode.model.parts import WholeSequences, body_of, norm_of, read_weights
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
        check_supported(lm.config, kernels)
        because = why_borrowed(lm.config)
        self.notes = notes
        self.lm = lm.eval().requires_grad_(False)
        self.config = config = lm.config
        self.num_layers: int = config.num_hidden_layers
        self.vocab_size: int = config.vocab_size
        self.context_len = context_len(config)
        self.eos_token_ids = _eos_token_ids(lm)
        lm.generation_config = GenerationConfig()  # greedy means greedy: no penalties from the model's own defaults
        self.model_hash = hash_weights(lm)
        check_one_device(config, kernels, len(stages))
        if is_borrowed(config, kernels):
            asked_for = kernels == "transformers"
            self.weights = borrow_weights(lm, OwnLayers(lm, self.context_len, None if asked_for else because))
        else:
            self.weights = read_weights(lm, stages)
        # of lm alone: a prefill that knew the decoder would keep it in memory, in a circle
        self.steps = Steps(self.weights, functools.partial(prefill, lm, self.weights), kernels)

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
        return embed(self.weights, token_ids)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The model's last normalisation of `hidden` `[T, d]`."""
        if self.weights.borrowed is not None:
            return self.weights.borrowed.norm(hidden)
        return norm_of(self.lm)(hidden)

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits `[T, V]` of hidden states `[T, d]` that have passed all L layers."""
        return self.output(self.final_norm(hidden))

    def output(self, normed: Tensor) -> Tensor:
        """Logits `[T, V]` of normed hidden states `[T, d]`, by the model's own head."""
        return self.finished(self.lm.get_output_embeddings()(normed))

    def finished(self, logits: Tensor) -> Tensor:
        """What becomes of products `[T, K]` with rows of a head's last matrix: the model's scale and cap, if any."""
        return finished(logits, self.weights.logits)

    @property
    def body(self) -> Any:
        """All of transformers' model but its head."""
        return body_of(self.lm)

    @property
    def layers(self) -> Any:
        """Its L layers, as transformers has them."""
        return self.body.layers if self.weights.borrowed is None else self.weights.borrowed.layers

    def run_like_last(self, layer: Any, hidden: Tensor) -> Tensor:
        """`hidden` `[B, T, d]` of B whole sequences after `layer`, a transformers layer like the last."""
        return WholeSequences(self.lm, hidden).run(layer, self.weights.kind(-1), hidden)


def prefill(
    lm: Any, weights: Weights, prompt_ids: Tensor, cache: KVCache, kept: Collection[int] = ()
) -> tuple[Tensor, dict[int, Tensor]]:
    """Runs the prompt `[T]` through the layers of `lm`, whose `weights` are these, and fills `cache`.

    Returns the last row's logits `[V]`, and the hidden states `[T, d]` after as many layers as each of `kept` says.
    """
    hidden = embed(weights, prompt_ids)[None]
    sequences, hidden_after = WholeSequences(lm, hidden), dict[int, Tensor]()
    for idx, layer in enumerate(body_of(lm).layers):
        hidden = sequences.run(layer, weights.kind(idx), hidden, cache)
        if idx + 1 in kept:
            hidden_after[idx + 1] = hidden[0]
    logits = lm.get_output_embeddings()(norm_of(lm)(hidden[0, -1:]))
    return finished(logits, weights.logits)[0], hidden_after


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
