"""Settings of the methods that are compared with adadecode: where and how much those draft."""

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field

from adadecode.methods import METHODS
from adadecode.settings.fields import Flag, Settings, flag_name

MAX_LAYERS = 10**4
MAX_DRAFTS = 64


def inner_layers(layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """`layers`; raises ValueError unless they can be layers of some model between its first and its last."""
    if layers is not None and (
        not layers or not 2 <= layers[0] <= layers[-1] <= MAX_LAYERS or any(a >= b for a, b in pairwise(layers))
    ):
        raise ValueError("layers must increase from 2 on, such as 4,5,6: the first and the last stay")
    return layers


class RivalSettings(Settings):
    """What the methods beside `adadecode` draft with; each is read by its methods alone."""

    layerskip_exit: Annotated[int | None, Flag(unset="L/4, or the first exit that has a head")] = Field(
        default=None, ge=1, le=MAX_LAYERS, description="Exit layer of --methods layerskip."
    )
    layerskip_drafts: int = Field(
        default=4,
        ge=1,
        le=MAX_DRAFTS,
        description="Drafts per round of --methods layerskip: few, because a wrong one wastes all after it.",
    )
    draft_model: Annotated[str | None, Flag(unset="none, and no method that needs one")] = Field(
        default=None,
        description="What --model may be, but smaller and of the same tokenizer, such as demo-draft for demo: it drafts.",
    )
    draft_revision: Annotated[str | None, Flag(unset="the newest")] = Field(
        default=None, description="Commit, tag or branch of --draft-model on the Hugging Face hub."
    )
    draft_gamma: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Chance that all drafts of --draft-model hold, above which it goes on; 0: always up to --max-drafts.",
    )
    medusa_heads: Annotated[str | None, Flag(unset="none, and no method that needs them")] = Field(
        default=None,
        description="Heads of --methods medusa: a folder of `train-heads --kind medusa`, or demo: the demo's own.",
    )
    medusa_gamma: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Chance that all drafts of --medusa-heads hold, above which it goes on; 0: always one of each head.",
    )
    skip_layers: Annotated[tuple[int, ...] | None, AfterValidator(inner_layers), Flag(unset="none")] = Field(
        default=None, description="Layers, counted from 1, that --methods layer-skipping leaves out, such as 4,5,6."
    )


# As all runs were before there were these settings.
RIVALS_BEFORE: dict[str, object] = RivalSettings().model_dump(mode="json")


def check_read(methods: tuple[str, ...], decode: RivalSettings) -> None:
    """Raises ValueError where `decode` sets what none of `methods` reads."""
    read = frozenset[str]().union(*(METHODS[name].reads_settings for name in methods))
    for name, field in RivalSettings.model_fields.items():
        value = getattr(decode, name)
        if name not in read and value != RIVALS_BEFORE[name]:
            readers = " or ".join(method.name for method in METHODS.values() if name in method.reads_settings)
            raise ValueError(f"{flag_name(name, field)} {value}: none of --methods reads it; add {readers}, or drop it")
    if decode.draft_revision is not None and decode.draft_model is None:
        raise ValueError(f"--draft-revision {decode.draft_revision}: there is no --draft-model; give one, or drop it")
    for name in methods:
        method = METHODS[name]
        if method.draft_model and decode.draft_model is None:
            raise ValueError(draft_model_missing(name))
        if method.medusa and decode.medusa_heads is None:
            raise ValueError(medusa_heads_missing(name))
        if method.skips_layers and decode.skip_layers is None:
            raise ValueError(skip_layers_missing(name))


def nothing_drafts(method: str) -> str:
    """What to say of `method` under a policy without exits and n-grams."""
    return (
        f"exits []: nothing drafts for {method} without exits and n-grams; give --ngram, such as 0.3, or --exits, "
        f"or drop {method}"
    )


def skip_layers_missing(method: str) -> str:
    """What to say of `method` without the layers that it leaves out."""
    return f"--skip-layers is missing: {method} leaves them out; give some, such as 4,5,6, or drop {method}"


def draft_model_missing(method: str) -> str:
    """What to say of `method` without the draft model that it needs."""
    return (
        f"--draft-model is missing: {method} drafts with one; give a smaller model of the same family, or drop {method}"
    )


def medusa_heads_missing(method: str) -> str:
    """What to say of `method` without the heads that it needs."""
    return (
        f"--medusa-heads is missing: {method} drafts with them; give a folder that `train-heads --kind medusa` wrote, "
        f"or drop {method}"
    )
