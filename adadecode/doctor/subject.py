"""The run that is looked at: its settings, and what several checks need of its files, read once."""

import contextlib
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adadecode.engine.policy import make_policy
from adadecode.errors import UsageError
from adadecode.evaluation.heads import heads_for, medusa_for
from adadecode.kernels.choose import choose_kernels
from adadecode.model.decoder import DecoderModel
from adadecode.model.draft_model import load_draft_model
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.families import context_len, is_borrowed
from adadecode.model.files import ModelFiles, find_model
from adadecode.model.load import load_model, load_tokenizer
from adadecode.model.medusa_heads import MedusaHeads
from adadecode.records import ChosenKernels, Example
from adadecode.settings import EvalConfig
from adadecode.tasks import expand_task, task_domain
from adadecode.tasks.encode import encode_prompt
from adadecode.tasks.heads import heads_folder, medusa_folder, reads_heads

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_LEN = 1024  # tokens of a prompt where none was read


@dataclass
class Subject:
    """One run before it is started, on this machine: `num_workers` processes here will each load the model.

    `longest` is the longest prompt in characters, None where the data were not read.
    """

    config: EvalConfig
    location: str  # of the run folder
    num_workers: int = 1
    longest: Example | None = None
    loaded: DecoderModel | None = None
    loaded_heads: dict[str, ExitHeads] = field(default_factory=dict[str, ExitHeads])  # per task

    @property
    def tasks(self) -> tuple[str, ...]:
        return expand_task(self.config.task)

    @functools.cached_property
    def models(self) -> dict[str, ModelFiles]:
        """The files of the model and of the draft model, where there is one, by their flags."""
        config = self.config
        named = {"--model": (config.model, config.revision)}
        if config.decode.draft_model is not None:
            named["--draft-model"] = (config.decode.draft_model, config.decode.draft_revision)
        return {flag: find_model(model, revision, flag) for flag, (model, revision) in named.items()}

    @functools.cached_property
    def described(self) -> dict[str, tuple[Any, "PreTrainedTokenizerBase"]]:
        """The configuration, as transformers has it, and the tokenizer of each of `models`, by their flags."""
        kernels = self.config.kernels
        return {flag: load_tokenizer(files.name, files.revision, flag, kernels) for flag, files in self.models.items()}

    @property
    def model_config(self) -> Any:
        """The configuration of the model, as transformers has it."""
        return self.described["--model"][0]

    @property
    def chosen_kernels(self) -> ChosenKernels:
        """What will compute decode steps of the model, as far as its configuration, where it can be read, tells."""
        config, borrows = self.config, False
        with contextlib.suppress(UsageError):  # other checks tell what is wrong with the model
            borrows = is_borrowed(self.model_config, config.kernels)
        if borrows:
            return ChosenKernels("transformers")
        return choose_kernels(config.kernels, torch.device(config.device), getattr(torch, config.dtype))

    @property
    def num_positions(self) -> int:
        """Positions of the longest request: a prompt and its output, at most the context."""
        config, tokenizer = self.described["--model"]
        prompt_len = PROMPT_LEN if self.longest is None else len(encode_prompt(tokenizer, self.longest))
        return min(prompt_len + self.config.decode.max_new_tokens, context_len(config))

    @property
    def width(self) -> int:
        """W of the run's decode steps."""
        return make_policy(self.config.decode, None, self.model_config.num_hidden_layers).width

    @property
    def heads_folders(self) -> dict[str, Path]:
        """The folder of each task's exit heads, where it has any; raises UsageError where they are missing."""
        if not reads_heads(self.config):
            return {}
        found = {task: heads_folder(self.config, task_domain(task)) for task in self.tasks}
        return {task: folder for task, folder in found.items() if folder is not None}

    @property
    def medusa_folders(self) -> dict[str, Path]:
        """The folder of each task's Medusa heads, where it has any."""
        found = {task: medusa_folder(self.config, task_domain(task)) for task in self.tasks}
        return {task: folder for task, folder in found.items() if folder is not None}

    @property
    def model(self) -> DecoderModel:
        """The model, loaded once."""
        if self.loaded is None:
            self.loaded, _ = load_model(self.config)
        return self.loaded

    def heads(self, task: str) -> ExitHeads | None:
        """The exit heads of `task`, loaded once; None where no method reads any."""
        if not reads_heads(self.config):
            return None
        if task not in self.loaded_heads:
            self.loaded_heads[task] = heads_for(self.config, task_domain(task), self.model)
        return self.loaded_heads[task]

    def medusa(self, task: str) -> MedusaHeads | None:
        """The Medusa heads of `task`; None where the settings name none."""
        return medusa_for(self.config, task_domain(task), self.model)

    @functools.cached_property
    def draft(self) -> DecoderModel | None:
        """The draft model; None where the settings name none."""
        return load_draft_model(self.config, self.described["--model"][1])
