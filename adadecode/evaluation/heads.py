"""The heads that settings name, loaded for a model."""

from collections.abc import Iterable

from adadecode.engine.policy import paper_exits
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.head_files import load_heads
from adadecode.model.head_tensors import original_heads
from adadecode.model.medusa_heads import MedusaHeads, load_medusa_heads
from adadecode.settings import DecodingSettings, Domain
from adadecode.tasks import task_domain
from adadecode.tasks.heads import heads_folder, medusa_folder


def heads_for(config: DecodingSettings, domain: Domain | None, model: DecoderModel) -> ExitHeads:
    """The heads `config` says for prompts of `domain`.

    The original ones are at the policy's exits, else the paper's, and at the exit of `layerskip`.
    """
    folder, decode = heads_folder(config, domain), config.decode
    if folder is None:
        exits = set(decode.exits or paper_exits(model.num_layers))
        if decode.layerskip_exit is not None and decode.layerskip_exit < model.num_layers:
            exits.add(decode.layerskip_exit)
        return original_heads(model, tuple(sorted(exits)))
    return load_heads(folder, model, decode.head, decode.gate, allows_foreign=config.foreign_heads)


def medusa_for(config: DecodingSettings, domain: Domain | None, model: DecoderModel) -> MedusaHeads | None:
    """The Medusa heads `config` says for prompts of `domain`; None where it names none."""
    folder = medusa_folder(config, domain)
    return None if folder is None else load_medusa_heads(folder, model, allows_foreign=config.foreign_heads)


def medusa_by_task(config: DecodingSettings, tasks: Iterable[str], model: DecoderModel) -> dict[str, MedusaHeads]:
    """The Medusa heads of each of `tasks`, loaded once where they share a folder; none where `config` names none."""
    named = {task: medusa_folder(config, task_domain(task)) for task in tasks}
    folders = {task: folder for task, folder in named.items() if folder is not None}
    loaded = {
        folder: load_medusa_heads(folder, model, allows_foreign=config.foreign_heads)
        for folder in dict.fromkeys(folders.values())
    }
    return {task: loaded[folder] for task, folder in folders.items()}
