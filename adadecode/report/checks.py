"""A named check: what `adadecode verify` holds a run to, one row of a table each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

from adadecode.methods import METHODS
from adadecode.settings import DRAWN_BEFORE, SamplingSettings

Seen = ParamSpec("Seen")
Found = TypeVar("Found", covariant=True)


@dataclass(frozen=True)
class Check(Generic[Seen, Found]):
    """One thing that is checked.

    `name` begins each line about it, `what` says in the words of the documentation what must hold, and `find` gives what
    does not: lines, or kinds of contradictions with a mask of the rows in which each is (`Wrong`).
    """

    name: str
    what: str
    find: Callable[Seen, Iterable[Found]]


@dataclass(frozen=True)
class Rules:
    """What a run's settings say of its rows; None: not known."""

    max_new_tokens: int | None = None
    most_drafts: Mapping[str, int | None] = field(default_factory=dict[str, "int | None"])  # of a round, by method
    reject_early: Sequence[str] = ()  # the methods that may drop a draft before the last layer judges it
    num_skipped: int | None = None  # layers that methods leave out which leave some out
    dtype: str | None = None
    check_logits: bool | None = None
    sampling: SamplingSettings | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Rules":
        """Those of the `config` in a run.json of any version."""
        decode = config.get("decode")
        decode = decode if isinstance(decode, dict) else {}
        return cls(
            max_new_tokens=_typed(decode.get("max_new_tokens"), int),
            most_drafts={name: method.most_drafts(decode) for name, method in METHODS.items()},
            reject_early=[name for name, method in METHODS.items() if method.may_reject_early(decode)],
            num_skipped=len(skipped) if isinstance(skipped := decode.get("skip_layers"), list) else None,
            dtype=_typed(config.get("dtype"), str),
            check_logits=_typed(config.get("check_logits"), bool),
            sampling=_sampling(config),
        )


def _sampling(config: Mapping[str, Any]) -> SamplingSettings | None:
    """How tokens are drawn, as all runs before drew them where `config` does not tell; None where that is not possible."""
    try:
        return SamplingSettings.model_validate({name: config.get(name, was) for name, was in DRAWN_BEFORE.items()})
    except ValueError:
        return None


def _typed(value: Any, kind: type) -> Any:
    return value if isinstance(value, kind) else None
