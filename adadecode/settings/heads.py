"""Which heads draft, and whether they may be another model's."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from adadecode.settings.fields import Flag, Settings

ORIGINAL_HEADS = "original"  # instead of a folder: the model's own norm and LM head at every exit

# As runs were before these settings came.
NEVER_FOREIGN: dict[str, object] = {"foreign_heads": False}


class HeadsSettings(Settings):
    """Which exit heads draft."""

    heads: Annotated[str | None, Flag(unset="the demo's own for the task's domain; other models need some")] = Field(
        default=None,
        description="Folder of exit heads, or the name of published ones, such as smollm2-135m-math; or `original`: the "
        "model's own LM head at every exit.",
    )
    foreign_heads: bool = Field(
        default=False,
        description="Allow heads made for other weights, such as those this model is a fine-tune of; told with results.",
    )

    @property
    def other_heads(self) -> str | None:
        """Heads named elsewhere that may be foreign; None for none."""
        return None

    @model_validator(mode="after")
    def _foreign_heads_are_named(self) -> Self:
        if self.foreign_heads and self.heads in (None, ORIGINAL_HEADS) and self.other_heads is None:
            raise ValueError(
                "--foreign-heads: no heads are named that could be another model's; give --heads, or drop it"
            )
        return self
