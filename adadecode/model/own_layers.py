"""A causal LM's own layers, norm and head, called through transformers' attention interface at static shapes.

No family is known here. What a layer is called with is learned by running the rest of the model with stand-ins in the
places of its layers; a model that this does not compute alike is refused.

Shapes: W rows, N rows of anything, d model width, S cache columns, G key/value heads, D head width, V vocabulary.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adadecode.errors import UnsupportedModelError
from adadecode.kernels.kv_cache import KVCache, num_columns
from adadecode.kernels.weights import Calls, Head, LayerShape, LogitShape, Weights
from adadecode.model.memory import is_out_of_memory
from adadecode.model.own_attention import NAME, PLACE, Columns, Measure, Place

PROBE_LEN = 12  # tokens that a model is tried with
LONGEST_WINDOW = 512  # that it is tried beyond
FAR = {torch.float32: 1e-3}  # how far logits may be from the model's own, of their norm
FAR_ROUNDED = 0.25  # in other dtypes
EXPERTS_BY = "batched_mm"  # transformers' products of experts whose shapes do not depend on where rows are routed
REMEDY = "a family of its own in adadecode/model/families.py would lift it"
NOTHING: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})  # noted


class StandIn(nn.Module):
    """Stands in the place of `layer`: notes what it is called with, and gives `given` or what came in."""

    def __init__(self, layer: nn.Module, num_outputs: int | None) -> None:
        """`num_outputs` is the length of the tuple that the layer returns; None where it returns the hidden state."""
        super().__init__()
        self.__dict__["layer"] = layer  # no part of this module
        self.__dict__["noted"] = NOTHING
        self.num_outputs, self.given = num_outputs, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["noted"] = (args, kwargs)
        hidden = (args[0] if args else kwargs["hidden_states"]) if self.given is None else self.given
        return hidden if self.num_outputs is None else (hidden, *(None,) * (self.num_outputs - 1))


class OwnLayers:
    """The layers, last norm and head of one causal LM, to be run by `kernels.borrowed`."""

    def __init__(self, lm: Any, context_len: int, because: str | None = None) -> None:
        """Learns how `lm` calls its layers; raises UnsupportedModelError when they cannot be run from outside."""
        self.because, self.context_len = because, context_len
        self._lm, self._kind = lm, str(lm.config.model_type)
        self.has_experts: bool = lm._can_set_experts_implementation()
        found = found_layers(lm)
        if found is None:
            raise self._refusal(f"it has no list of its {lm.config.num_hidden_layers} layers")
        self._owner, self._name, self.layers = found
        self.num_layers = len(self.layers)
        if not lm._can_set_attn_implementation():
            raise self._refusal("its attention does not go through transformers' attention interface")
        try:
            self._learn(min(probe_len(lm.config), context_len))
        except UnsupportedModelError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[:1]
            raise self._refusal(
                f"its layers cannot be called from outside ({': '.join([type(error).__name__, *reason])})"
            ) from error

    def _refusal(self, why: str, remedy: str = REMEDY) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"model type {self._kind!r}: {why}, so --kernels transformers cannot run it; {remedy}"
        )

    def _learn(self, length: int) -> None:
        """What the layers return and what they cache; then whether calls from outside compute what the model does."""
        lm, device = self._lm, self._lm.get_input_embeddings().weight.device
        token_ids = torch.arange(1, length + 1, device=device) % lm.config.vocab_size
        outputs: dict[int, Any] = {}
        hooks = [
            layer.register_forward_hook(lambda _m, _a, out, idx=idx: outputs.__setitem__(idx, out))
            for idx, layer in enumerate(self.layers)
        ]
        try:
            with torch.inference_mode():
                expected = lm(token_ids[None], use_cache=False).logits[0, -1].float()
        finally:
            for hook in hooks:
                hook.remove()
        lengths = [len(out) if isinstance(out, tuple) else None for _, out in sorted(outputs.items())]
        if len(lengths) != self.num_layers:
            raise self._refusal("some of its layers do not run")
        self.width = (outputs[0] if lengths[0] is None else outputs[0][0]).shape[-1]
        self._stand_ins: Any = nn.ModuleList(map(StandIn, self.layers, lengths))
        positions, measure = torch.arange(length, device=device), Measure(length)
        with torch.inference_mode(), self._attending(Place(positions, positions)):
            lm(token_ids[None], position_ids=positions[None], past_key_values=measure, use_cache=True)
        if [idx for idx, *_ in measure.shapes] != [*range(self.num_layers)]:
            raise self._refusal(
                "not every layer has keys and values of its own, one for each position",
                "states that can be taken back when a draft is wrong would lift it",
            )
        both = [shape for _, *shapes in measure.shapes for shape in shapes]
        self.num_kv_heads, self.head_dim = max(shape[0] for shape in both), max(shape[2] for shape in both)
        found = self._through_columns(token_ids)
        far = float((found - expected).norm() / expected.norm())
        if not far <= FAR.get(self.dtype, FAR_ROUNDED):
            raise self._refusal(f"its layers, called from outside, give other logits than it does (off by {far:.2g})")

    @property
    def dtype(self) -> torch.dtype:
        return self._lm.get_input_embeddings().weight.dtype

    def new_cache(self, num_columns: int) -> KVCache:
        """Zeroed keys and values with S = `num_columns`."""
        like = self._lm.get_input_embeddings().weight
        return KVCache(self.num_layers, self.num_kv_heads, self.head_dim, num_columns, like)

    @torch.inference_mode()
    def _through_columns(self, token_ids: Tensor) -> Tensor:
        """Logits `[V]` after `token_ids` `[T]`, float32: half or more at once, then one by one beside an idle row."""
        cache = self.new_cache(num_columns(len(token_ids)))
        half = max(len(token_ids) // 2, len(token_ids) - PROBE_LEN)
        positions = torch.arange(len(token_ids), device=token_ids.device)
        if half:
            calls = self.calls(token_ids[:half], positions[:half], positions[:half], cache)
            self.run(calls, calls.entering, 0, self.num_layers)
        hidden = positions.new_zeros(0)
        for at in range(half, len(token_ids)):
            rows, places = token_ids[at].repeat(2), positions[at].repeat(2)
            columns = torch.stack((positions[at], torch.full_like(positions[at], cache.scratch)))
            calls = self.calls(rows, places, columns, cache)
            hidden = self.run(calls, calls.entering, 0, self.num_layers)
        self.finished(self._lm.get_output_embeddings()(self.norm(hidden)))  # what heads need works too
        return self.logits(hidden)[0].float()

    def calls(self, token_ids: Tensor, positions: Tensor, columns: Tensor, cache: KVCache) -> Calls:
        """What rows of `token_ids` `[W]` enter layer 1 with, and what each layer is called with at their `positions`."""
        positions = positions.clamp(max=self.context_len - 1)
        place = Place(positions, torch.arange(cache.num_columns, device=positions.device))
        with self._attending(place), self._standing_in(None):
            self._lm.base_model(
                token_ids[None], position_ids=positions[None], past_key_values=Columns(cache, columns), use_cache=True
            )
            noted = tuple(stand_in.noted for stand_in in self._stand_ins)
        args, kwargs = noted[0]
        entering = args[0] if args else kwargs["hidden_states"]
        return Calls(entering[0], positions, columns, cache, noted)

    def run(self, calls: Calls, hidden: Tensor, start: int, stop: int) -> Tensor:
        """`hidden` `[W, d]` after layers [start, stop)."""
        cache = Columns(calls.cache, calls.columns)
        place = Place(calls.positions, torch.arange(calls.cache.num_columns, device=hidden.device))
        rows = hidden[None]
        with self._attending(place):
            for idx in range(start, stop):
                args, kwargs = calls.of_layers[idx]
                args = [cache if isinstance(value, Columns) else value for value in args]
                kwargs = {name: cache if isinstance(value, Columns) else value for name, value in kwargs.items()}
                if args:
                    args[0] = rows
                else:
                    kwargs["hidden_states"] = rows
                out = self.layers[idx](*args, **kwargs)
                rows = out[0] if isinstance(out, tuple) else out
        return rows[0]

    def norm(self, hidden: Tensor) -> Tensor:
        """What the model makes of `hidden` `[N, d]` between its last layer and its head."""
        with self._after_layers(hidden) as inputs:
            return self._lm.base_model(**inputs).last_hidden_state[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits `[N, V]` of `hidden` `[N, d]` after all layers."""
        with self._after_layers(hidden) as inputs:
            return self._lm(**inputs).logits[0]

    def finished(self, products: Tensor) -> Tensor:
        """What the model makes of the products `[N, K]` of its head: a scale, a cap, or nothing."""
        head = self._lm.get_output_embeddings()
        hidden = products.new_zeros(len(products), self.width)
        with self._after_layers(hidden) as inputs:
            head.forward = lambda *_, **__: products[None]
            try:
                return self._lm(**inputs).logits[0]
            finally:
                del head.forward

    @contextmanager
    def _after_layers(self, hidden: Tensor) -> Generator[dict[str, Any]]:
        """What to call the model with to have it go on with `hidden` `[N, d]` after its layers."""
        nothing = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        with self._attending(Place(nothing, nothing[:1])), self._standing_in(hidden[None]):
            yield {"input_ids": nothing[None], "position_ids": nothing[None], "use_cache": False}

    @contextmanager
    def _standing_in(self, given: Tensor | None) -> Generator[None]:
        """Has stand-ins in the places of the layers, which give `given` `[1, N, d]`, or what comes in."""
        for stand_in in self._stand_ins:
            stand_in.given = given
        setattr(self._owner, self._name, self._stand_ins)
        try:
            yield
        finally:
            setattr(self._owner, self._name, self.layers)
            for stand_in in self._stand_ins:  # else they would keep a request's cache
                stand_in.given, stand_in.__dict__["noted"] = None, NOTHING

    @contextmanager
    def _attending(self, place: Place) -> Generator[None]:
        """Has our attention compute that of the model, with rows at `place`."""
        config = self._lm.config
        before, token = config._attn_implementation, PLACE.set(place)
        experts = config._experts_implementation_internal if self.has_experts else None
        config._attn_implementation = NAME
        if self.has_experts:
            config._experts_implementation_internal = EXPERTS_BY
        try:
            yield
        finally:
            config._attn_implementation = before
            if self.has_experts:
                config._experts_implementation_internal = experts
            PLACE.reset(token)


def probe_len(config: Any) -> int:
    """Tokens that a model of `config` is tried with: some of them beyond its window, where that is short."""
    window = getattr(config, "sliding_window", None)
    return max(PROBE_LEN, window + 4) if isinstance(window, int) and window <= LONGEST_WINDOW else PROBE_LEN


def found_layers(lm: Any) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """The list of the layers of `lm`, and whose attribute it is; None where there is none."""
    body, num_layers = lm.base_model, lm.config.num_hidden_layers
    found = [
        (name.count("."), name)
        for name, module in body.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if not found:
        return None
    owner, _, name = min(found)[1].rpartition(".")
    parent = body.get_submodule(owner)
    return parent, name, getattr(parent, name)


def borrow_weights(lm: Any, own: OwnLayers) -> Weights:
    """What decode steps read of `lm` where they borrow its layers: embedding and head, and no layer."""
    head, config = lm.get_output_embeddings().weight, lm.config
    return Weights(
        embedding=lm.get_input_embeddings().weight,
        layers=(),
        norm=head.new_ones(own.width),
        head=Head((head,)),
        rotaries=(),
        shape=LayerShape(max(config.num_attention_heads, own.num_kv_heads), own.num_kv_heads, own.head_dim, 0.0),
        context_len=own.context_len,
        logits=LogitShape(own=own.finished),
        borrowed=own,
    )
