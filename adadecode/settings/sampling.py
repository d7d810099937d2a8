"""Settings of how tokens are drawn, and the key of the noise that draws those of one output."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from adadecode.settings.fields import Settings, flag_name

MAX_TEMPERATURE, LEAST_TEMPERATURE = 10.0, 0.01  # below the least logits overflow, and nothing but the best is drawn
MAX_TOP_K = 10**9
MAX_SAMPLING_SEED = 2**32 - 1


class SamplingSettings(Settings):
    """Whether tokens are drawn, from what, and by which noise: at temperature 0 the likeliest is taken."""

    temperature: float = Field(
        default=0.0,
        ge=0.0,
        le=MAX_TEMPERATURE,
        description="What logits are divided by before a token is drawn; 0: greedy, the likeliest token.",
    )
    top_p: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Draw among the likeliest tokens that come to this much probability."
    )
    top_k: int = Field(default=0, ge=0, le=MAX_TOP_K, description="Draw among this many likeliest tokens; 0: all.")
    min_p: float = Field(
        default=0.0, ge=0.0, le=1.0, description="Draw among tokens at least this likely, beside the likeliest; 0: all."
    )
    sampling_seed: int = Field(
        default=0,
        ge=0,
        le=MAX_SAMPLING_SEED,
        description="Of the noise that draws; each repeat has its own.",
    )

    @model_validator(mode="after")
    def _what_draws_has_an_effect(self) -> Self:
        if 0.0 < self.temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"--temperature {self.temperature:g}: give 0 for greedy, or one from {LEAST_TEMPERATURE:g} to "
                f"{MAX_TEMPERATURE:g}"
            )
        if not self.is_sampled:
            for name, field in SamplingSettings.model_fields.items():
                if (value := getattr(self, name)) != field.default:
                    raise ValueError(
                        f"{flag_name(name, field)} {value:g}: at --temperature 0 nothing is drawn; give a temperature from "
                        f"{LEAST_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, or drop it"
                    )
        return self

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0.0

    def sampling_key(self, task: str, sample_id: str, repeat: int = 0, turn: int = 0) -> int | None:
        """The key, of 64 bits, of the noise of one output, whatever the method; None where nothing is drawn."""
        return key_of(self.sampling_seed, task, sample_id, repeat, turn) if self.is_sampled else None


# As all runs were before there were these settings.
DRAWN_BEFORE: dict[str, object] = SamplingSettings().model_dump(mode="json")


def key_of(seed: int, task: str, sample_id: str, repeat: int, turn: int) -> int:
    """64 bits that belong to one output of one seed: of BLAKE2b, so that two outputs hardly ever share them."""
    named = json.dumps([seed, task, sample_id, repeat, turn], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little")


def key_text(key: int | None) -> str | None:
    """A key as tables have it, 16 hexadecimal digits: not every reader has integers of 64 bits without a sign."""
    return None if key is None else f"{key:016x}"


def sampling_text(config: Mapping[str, Any]) -> str | None:
    """How the `config` in a run.json of any version draws, as `temperature 0.7, top-p 0.9`; None where it is greedy."""
    drawn = {name: config.get(name, before) for name, before in DRAWN_BEFORE.items()}
    if drawn["temperature"] == DRAWN_BEFORE["temperature"]:
        return None
    named = {name: value for name, value in drawn.items() if name == "temperature" or value != DRAWN_BEFORE[name]}
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in named.items())


def sampling_facts(settings: SamplingSettings) -> dict[str, str]:
    """What a worker says of how it draws: `sampling`, where it draws at all."""
    text = sampling_text(settings.model_dump())
    return {} if text is None else {"sampling": text}
