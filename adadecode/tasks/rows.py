"""Rows of a data set, read from a file or the Hugging Face hub; every row knows where it stands, for error messages."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adadecode.errors import PromptError, TaskDataError
from adadecode.printable import is_unicode
from adadecode.tasks.data_files import TEXT_COLUMN, PlacedRow, Unreadable, file_rows, shown

MAX_NAMES_LEN = 200  # of the names of a row's fields in a message, in characters


@dataclass(frozen=True)
class HubDataset:
    """A data set on the hub as it was at the commit `revision`: the split to read and, if any, the split to train on.

    `config` is None where the data set has only one. Worked examples come from `shots_split`, or the training split.
    """

    name: str
    config: str | None
    split: str
    revision: str
    training_split: str | None = None
    shots_split: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.name, self.config, self.split) if part is not None)

    def for_training(self) -> "HubDataset":
        """The same data set with the training split as the one to read."""
        assert self.training_split is not None, self.name
        return replace(self, split=self.training_split)

    def for_shots(self) -> "HubDataset | None":
        """The same data set with the split of worked examples as the one to read; None where it has none."""
        split = self.shots_split or self.training_split
        return None if split is None else replace(self, split=split)


@dataclass(frozen=True)
class Row:
    """One row, the 0-based `idx` of its data set; `where` is its file and 1-based line, or its data set and row.

    `fields` has those its task reads, as far as they are there; `names` are those of all it has.
    """

    idx: int
    where: str
    fields: dict[str, Any]
    names: Collection[str]

    def value(self, field: str) -> Any:
        """What `field` holds, None where it is not there. Raises PromptError if that cannot be read."""
        value = self.fields.get(field)
        if isinstance(value, Unreadable):
            raise PromptError(f"{self.where}: column {field!r} cannot be read ({value.reason}); {TEXT_COLUMN}")
        return value

    def text(self, field: str, remedy: str) -> str:
        """The text in `field`, unchanged. Raises PromptError, ending in `remedy`, if there is none to decode."""
        return self._checked_text(self.present(field, remedy), f"field {field!r}", remedy)

    def texts(self, field: str, remedy: str) -> list[str]:
        """The texts of the list in `field`, at least one. Raises PromptError, ending in `remedy`, if there are none."""
        values = self.present(field, remedy)
        if not isinstance(values, list) or not values:
            raise PromptError(f"{self.where}: field {field!r} is {shown(values)}, no list of texts; {remedy}")
        return [self._checked_text(value, f"text {idx} of {field!r}", remedy) for idx, value in enumerate(values)]

    def present(self, field: str, remedy: str) -> Any:
        """What `field` holds; raises PromptError, which lists the fields there are, when it is not there."""
        if field not in self.fields:
            present = ", ".join(self.names) or "none"
            if len(present) > MAX_NAMES_LEN:
                present = present[:MAX_NAMES_LEN] + "..."
            raise PromptError(f"{self.where}: no field {field!r} among its fields ({present}); {remedy}")
        return self.value(field)

    def _checked_text(self, value: Any, name: str, remedy: str) -> str:
        """`value`, which is called `name`; raises PromptError unless it is a text that can be decoded."""
        if not isinstance(value, str):
            raise PromptError(f"{self.where}: {name} is {shown(value)}, not text; {remedy}")
        if not value.strip():
            raise PromptError(f"{self.where}: {name} is {shown(value)}, which holds no text; {remedy}")
        if not is_unicode(value):
            raise PromptError(f"{self.where}: {name} is {shown(value)}, not valid Unicode; {remedy}")
        return value


def iterate_rows(source: Path | HubDataset, wanted: Collection[str]) -> Iterator[Row]:
    """Yields the rows of `source` as they are read: they need not fit in memory, and none is checked before it is due.

    They have at least the fields `wanted`, as far as there are any. Raises TaskDataError for unusable data.
    """
    found = _hub_rows(source) if isinstance(source, HubDataset) else file_rows(source, wanted)
    idx = -1
    for idx, (where, fields, names) in enumerate(found):
        yield Row(idx, where, fields, names)
    if idx < 0:
        raise TaskDataError(f"{source}: the data set is empty; give one with at least one row with --data-file")


def _hub_rows(source: HubDataset) -> Iterator[PlacedRow]:
    import datasets

    try:
        rows = datasets.load_dataset(source.name, source.config, split=source.split, revision=source.revision)
    except Exception as error:  # the hub's client raises unrelated families: connection, HTTP, cache, generation
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TaskDataError(
            f"{source}: cannot be loaded from the Hugging Face hub ({reason}); "
            "check the network, or download the data set elsewhere and give the file with --data-file"
        ) from error
    for row_idx, fields in enumerate(rows):
        yield PlacedRow(f"{source} row {row_idx}", dict(fields), list(fields))
