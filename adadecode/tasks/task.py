"""What a data set is: where its rows lie, which example a row is, and how an output is scored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from adadecode.errors import PromptError, UsageError
from adadecode.records import Example
from adadecode.scoring.scorer import Scorer
from adadecode.settings import DataSettings, Domain
from adadecode.tasks.rows import HubDataset, Row, iterate_rows

Found = Example | PromptError  # what a row gives: its example, or why it cannot be used


@dataclass(frozen=True)
class Task:
    """One data set. `rows` says where it lies, and so whether `--data-file` may, must not or must be given.

    `example` makes the example of a row from its `fields`, and from the one that `prompt_field` names where the rows are
    the user's own; for a row that cannot be used it raises PromptError. `score` gives an output text and
    its example's reference a number, and `metric` names it; in the tables an output counts as correct at 1.0. `scorer`
    makes scores.parquet of a run's outputs, after the run and whenever it is asked to.
    """

    name: str
    description: str
    rows: HubDataset | Path | None  # None where they are the user's own
    fields: tuple[str, ...]  # the columns that are read
    example: Callable[[Row, DataSettings], Example]
    id_remedy: str = "give every row an id of its own"  # what to do about two rows of one id
    domain: Domain | None = None  # None where the prompts may be of any kind
    licence: str | None = None
    metric: str | None = None
    score: Callable[[str, str], float] | None = None
    scorer: Scorer | None = None

    def __post_init__(self) -> None:
        assert (self.score is None) == (self.metric is None), self.name

    @property
    def source(self) -> str:
        """Where its rows come from, as `adadecode tasks` says it."""
        if self.rows is None:
            return "--data-file with the column --prompt-field"
        return f"{self.rows} or --data-file" if isinstance(self.rows, HubDataset) else "embedded"

    def iterate(self, data: DataSettings, *, for_training: bool = False) -> Iterator[tuple[Row, Found]]:
        """Yields its rows from the first one on, each with its example; of `data` all counts but offset and limit.

        A row that cannot be used has the error that says why in place of its example. From the hub come test splits, or
        training splits `for_training`. Raises UsageError for a setting the task does not use or lacks, TaskDataError for
        unusable data when it gets there.
        """
        own = () if self.rows is not None else (data.prompt_field,)
        for row in iterate_rows(self._where(data, for_training), dict.fromkeys((*self.fields, *own))):
            yield row, self._found(row, data)

    def _found(self, row: Row, data: DataSettings) -> Found:
        try:
            return self.example(row, data)
        except PromptError as error:
            return error

    def _where(self, data: DataSettings, for_training: bool) -> Path | HubDataset:
        """Where `data` has the rows read; raises UsageError for a setting the task does not use, or one it lacks."""
        file, field = data.data_file, data.prompt_field
        if file and isinstance(self.rows, Path):
            raise UsageError(f"--data-file {file}: task {self.name} has embedded prompts; drop it, or use --task jsonl")
        if field != "prompt" and self.rows is not None:
            raise UsageError(f"--prompt-field {field}: task {self.name} has fixed fields; drop it, or use --task jsonl")
        if file:
            return Path(file)
        match self.rows:
            case HubDataset(training_split=None) if for_training:
                raise UsageError(
                    f"--data-file is missing: {self.name} has no training split; train on prompts of your own"
                )
            case HubDataset():
                return self.rows.for_training() if for_training else self.rows
            case Path():
                return self.rows
            case None:
                raise UsageError(
                    f"--data-file is missing: task {self.name} reads your prompts from a .jsonl, .jsonl.gz or .parquet file"
                )
