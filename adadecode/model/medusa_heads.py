"""Medusa heads (Cai et al. 2024, arXiv 2401.10774): what comes after the next token, told from the last layer's state.

Head k turns the normed state r that the next token is predicted from into r + SiLU(W_k r), and says with the model's own
LM head which token stands k places after that next one. Medusa's heads have an LM head each; here all share the model's,
cut to frequent tokens, so that the K of them read it once. On disk they are `medusa_heads.safetensors` with `residuals`,
`token_ids` and `temperatures`, and `medusa_heads.json`, `HeadFacts` of kind `medusa`.

Shapes: K heads, N states, d model width, S tokens of the shortlist.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import linear, silu

from adadecode.errors import ExitHeadsError
from adadecode.files import short_hash, write_whole
from adadecode.kernels.layers import final_norm, finished
from adadecode.kernels.step import Proposals
from adadecode.kernels.weights import Weights
from adadecode.model.decoder import DecoderModel
from adadecode.model.files import shown
from adadecode.model.head_files import FORMAT_VERSION, HeadFacts
from adadecode.printable import on_one_line

TENSORS, FACTS = "medusa_heads.safetensors", "medusa_heads.json"
FLAG = "--medusa-heads"
RETRAIN = "train some for this model with `adadecode train-heads --kind medusa`"


@dataclass(frozen=True)
class MedusaTensors:
    """The heads as they are trained and saved: `residuals` `[K, d, d]`, `token_ids` `[S]`, `temperatures` `[K]`.

    A temperature is what a head's logits are divided by, so that a confidence is a chance.
    """

    residuals: Tensor
    token_ids: Tensor
    temperatures: Tensor

    def on(self, model: DecoderModel, content_hash: str | None = None) -> "MedusaHeads":
        """These heads on `model`; raises ExitHeadsError when they do not fit it."""
        num_heads, width, vocab_size = len(self.residuals), model.width, model.vocab_size
        is_whole = self.token_ids.ndim == 1 and not self.token_ids.is_floating_point() and self.token_ids.numel() > 0
        fits = num_heads > 0 and self.residuals.shape == (num_heads, width, width)
        fits = fits and self.temperatures.shape == (num_heads,)
        if not (fits and is_whole and 0 <= int(self.token_ids.min()) <= int(self.token_ids.max()) < vocab_size):
            raise ExitHeadsError(f"they do not fit a model of width {width} and {vocab_size} tokens")
        are_sound = all(is_finite(tensor) for tensor in (self.residuals, self.temperatures))
        if not (are_sound and bool((self.temperatures > 0.0).all())):
            raise ExitHeadsError("not all of their numbers are finite, or a temperature is not above 0")
        token_ids = self.token_ids.to(model.device, torch.long)
        rows = model.weights.head.matrices[0][token_ids]
        temperatures = self.temperatures.to(model.device, torch.float32)
        residuals = self.residuals.to(model.device, model.dtype).contiguous()
        return MedusaHeads(residuals, rows, token_ids, temperatures, model.weights, content_hash)


def is_finite(tensor: Tensor) -> bool:
    """Whether `tensor` holds real numbers, all of them finite."""
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


@dataclass(frozen=True, eq=False)
class MedusaHeads:
    """K heads of one model: `residuals` `[K, d, d]` before the `rows` `[S, d]` of its LM head for `token_ids` `[S]`."""

    residuals: Tensor
    rows: Tensor
    token_ids: Tensor
    temperatures: Tensor
    weights: Weights
    content_hash: str | None = None

    @property
    def num_heads(self) -> int:
        """K, how many tokens after the next one they tell."""
        return len(self.residuals)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What lies in memory beside the model's weights."""
        return self.residuals, self.rows, self.token_ids, self.temperatures

    @functools.cached_property
    def _flat(self) -> Tensor:
        """All residuals as one matrix `[K d, d]`."""
        return self.residuals.flatten(0, 1)

    @functools.cached_property
    def _coolness(self) -> Tensor:
        """What logits are multiplied with `[K, 1]`."""
        return (1.0 / self.temperatures)[:, None]

    @functools.cached_property
    def _known(self) -> list[int]:
        """The token ids as Python's numbers, which a round takes them as."""
        return self.token_ids.tolist()

    def proposals(self, hidden: Tensor, num_tokens: int) -> Proposals:
        """The likeliest token of each of the first `num_tokens` heads and its probability, of a state `hidden` `[d]`.

        The state has passed all layers, not the final norm.
        """
        residuals, coolness = self._flat, self._coolness
        if num_tokens < self.num_heads:
            residuals, coolness = residuals[: num_tokens * self.weights.width], coolness[:num_tokens]
        normed = final_norm(self.weights, hidden)
        entered = normed + silu(linear(normed, residuals)).view(len(coolness), -1)
        probabilities = (finished(linear(entered, self.rows), self.weights.logits) * coolness).softmax(
            dim=-1, dtype=torch.float32
        )
        tops, best = probabilities.max(dim=-1)
        return [(self._known[i], top) for i, top in zip(best.tolist(), tops.tolist(), strict=True)]

    def logits(self, head_idx: int, normed: Tensor) -> Tensor:
        """Logits `[N, S]` of one head on normed states `[N, d]`, before its temperature."""
        products = linear(normed + silu(linear(normed, self.residuals[head_idx])), self.rows)
        return finished(products, self.weights.logits)


def save_medusa_heads(folder: Path, tensors: MedusaTensors, facts: HeadFacts) -> None:
    """Writes `tensors` and `facts` to `folder`, made if missing; the facts last, as the sign of completeness."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)
    named = {
        "residuals": tensors.residuals.to(getattr(torch, facts.dtype)),
        "token_ids": tensors.token_ids.to(torch.int32),
        "temperatures": tensors.temperatures.float(),
    }
    write_whole(folder / TENSORS, save({name: tensor.cpu().contiguous() for name, tensor in named.items()}))
    write_whole(folder / FACTS, json.dumps(facts.model_dump(mode="json"), indent=2) + "\n")


def load_medusa_heads(folder: Path, model: DecoderModel) -> MedusaHeads:
    """The Medusa heads in `folder`; raises ExitHeadsError when they are unreadable, damaged or made for another model."""
    named = f"{FLAG} {str(folder)!r}"
    try:
        if not (folder / FACTS).is_file() or not (folder / TENSORS).is_file():
            raise ExitHeadsError(f"{named}: no {FACTS} with {TENSORS} there; {RETRAIN}")
        facts = HeadFacts.model_validate_json((folder / FACTS).read_bytes())
        raw = (folder / TENSORS).read_bytes()
        found = MedusaTensors(**load(raw))
    except OSError as error:
        raise ExitHeadsError(f"{named}: cannot be read ({error.strerror}); check its name and permissions") from error
    except (SafetensorError, ValidationError, RuntimeError, LookupError, TypeError) as error:
        raise ExitHeadsError(f"{named}: the files are damaged; {RETRAIN} ({type(error).__name__})") from error
    if facts.format_version != FORMAT_VERSION:
        raise ExitHeadsError(
            f"{named}: their format_version is {shown(facts.format_version)}, this program knows {FORMAT_VERSION}: update "
            f"it, or {RETRAIN}"
        )
    if facts.base_model_hash != model.model_hash:
        raise ExitHeadsError(
            f"{named}: made for {facts.base_model!r} with weights {on_one_line(facts.base_model_hash, 40)}, this model's "
            f"are {model.model_hash}; {RETRAIN}"
        )
    try:
        return found.on(model, short_hash(raw))
    except ExitHeadsError as error:
        raise ExitHeadsError(f"{named}: {error}; {RETRAIN}") from error
