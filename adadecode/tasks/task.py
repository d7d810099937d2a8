"""What a data set is: where its rows lie, which example a row is, and how an output is scored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from adadecode.errors import PromptError, UsageError
from adadecode.records import Example
from adadecode.scoring.scorer import Scorer
from adadecode.settings import DataSettings, Domain
from adadecode.tasks.rows import HubDataset, Row, iterate_rows
from adadecode.tasks.shots import Shot, with_context

Found = Example | PromptError  # what a row gives: its example, or why it cannot be used


@dataclass(frozen=True)
class Task:
    """One data set. `rows` says where it lies, and so whether `--data-file` may, must not or must be given.

    `size` is how many samples the split that is read has, as published; None where the rows are the user's own.

    `example` makes the example of a row from its `fields`, and from the one that `prompt_field` names where the rows are
    the user's own; for a row that cannot be used it raises PromptError. `score` gives an output text and
    its example's reference a number, and `metric` names it; in the tables an output counts as correct at 1.0. `scorer`
    makes scores.parquet of a run's outputs, after the run and whenever it is asked to. `stops` are the strings at which the
    field ends what follows the plain prompt; they are used where `--task-stops` asks for them.
    """

    name: str
    description: str
    rows: HubDataset | Path | None  # None where they are the user's own
    fields: tuple[str, ...]  # the columns that are read
    example: Callable[[Row, DataSettings], Example]
    shot: Callable[[Row, DataSettings], Shot] | None = None  # a row as a worked example; None where it has no answer
    has_prompt_field: bool = False  # whether the column `prompt_field` names is read too
    size: int | None = None
    id_remedy: str = "give every row an id of its own"  # what to do about two rows of one id
    domain: Domain | None = None  # None where the prompts may be of any kind
    licence: str | None = None
    metric: str | None = None
    score: Callable[[str, str], float] | None = None
    scorer: Scorer | None = None
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert (self.score is None) == (self.metric is None), self.name

    @property
    def metrics(self) -> tuple[str, ...]:
        """What an output is judged by: its `metric`, which decides `correct`, then those of scores.parquet."""
        return (*([self.metric] if self.metric else []), *(self.scorer.metrics if self.scorer else ()))

    @property
    def source(self) -> str:
        """Where its rows come from, as `adadecode tasks` says it."""
        if self.rows is None:
            return "--data-file with the column --prompt-field" if self.has_prompt_field else "--data-file"
        return f"{self.rows} or --data-file" if isinstance(self.rows, HubDataset) else "embedded"

    def read_from(self, data: DataSettings) -> dict[str, str | None]:
        """Where an evaluation with `data` reads the rows, and of the hub at which revision, as run.json stores it."""
        where = self._where(data, for_training=False)
        found: dict[str, str | None] = {
            "source": "embedded" if isinstance(self.rows, Path) else str(where),
            "revision": where.revision if isinstance(where, HubDataset) else None,
        }
        return {**found, "shots": str(self._shots_from(data))} if data.num_shots else found

    def iterate(self, data: DataSettings, *, for_training: bool = False) -> Iterator[tuple[Row, Found]]:
        """Yields its rows from the first one on, each with its example; of `data` all counts but offset and limit.

        A row that cannot be used has the error that says why in place of its example. From the hub come test splits, or
        training splits `for_training`. Raises UsageError for a setting the task does not use or lacks, TaskDataError for
        unusable data when it gets there.
        """
        own = (data.prompt_field,) if self.has_prompt_field else ()
        where, shots = self._where(data, for_training), self._shots(data)
        for row in iterate_rows(where, dict.fromkeys((*self.fields, *own))):
            yield row, self._found(row, data, shots)

    def _found(self, row: Row, data: DataSettings, shots: tuple[Shot, ...]) -> Found:
        try:
            return with_context(row, self.example(row, data), shots, data.system_prompt)
        except PromptError as error:
            return error

    def _shots(self, data: DataSettings) -> tuple[Shot, ...]:
        """The worked examples that `data` wants; raises UsageError, also as PromptError, when there are not so many."""
        if data.num_shots == 0:
            return ()
        where = self._shots_from(data)
        assert self.shot is not None, self.name
        shots = tuple(self.shot(row, data) for row in islice(iterate_rows(where, self.fields), data.num_shots))
        if len(shots) < data.num_shots:
            raise UsageError(f"--num-shots {data.num_shots}: {where} has {len(shots)} rows; give at most as many")
        return shots

    def _shots_from(self, data: DataSettings) -> Path | HubDataset:
        """Where worked examples are read; raises UsageError where there are none."""
        if self.shot is None:
            raise UsageError(
                f"--num-shots {data.num_shots}: rows of task {self.name} have no answers to show as examples; drop it"
            )
        if data.shots_file is not None:
            return Path(data.shots_file)
        where = self.rows.for_shots() if isinstance(self.rows, HubDataset) else None
        if where is None:
            raise UsageError(f"--shots-file is missing: task {self.name} has no training split to show examples of")
        return where

    def _where(self, data: DataSettings, for_training: bool) -> Path | HubDataset:
        """Where `data` has the rows read; raises UsageError for a setting the task does not use, or one it lacks."""
        file, field = data.data_file, data.prompt_field
        if file and isinstance(self.rows, Path):
            raise UsageError(f"--data-file {file}: task {self.name} has embedded prompts; drop it, or use --task jsonl")
        if field != "prompt" and not self.has_prompt_field:
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
