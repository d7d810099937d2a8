"""What a run reads: samples, the model's files, what kind of model it is, and the files of its heads."""

from collections.abc import Iterator
from pathlib import Path

from adadecode.doctor.finding import Finding
from adadecode.doctor.machine import gb
from adadecode.doctor.subject import Subject
from adadecode.engine.policy import make_policy
from adadecode.model.families import FAMILIES, check_one_device, context_len, why_borrowed
from adadecode.model.files import ModelFiles
from adadecode.model.head_files import TENSORS, HeadFacts, read_facts
from adadecode.model.load import check_local
from adadecode.model.medusa_heads import FACTS as MEDUSA_FACTS
from adadecode.model.weight_files import WeightFiles, find_weights
from adadecode.records import Example
from adadecode.runs.fingerprint import heads_folders
from adadecode.tasks import find_task, load_examples, stops_of
from adadecode.tasks.encode import plain_text


def data(subject: Subject) -> Iterator[Finding]:
    """The samples of each task can be read, all that the settings choose."""
    config, read = subject.config, list[Example]()
    for task in subject.tasks:
        stops_of(config, task)  # raises where it has none
        examples = load_examples(task, config)
        read += examples
        source = find_task(task).read_from(config)["source"]
        yield Finding.ok("data", f"{task}: {len(examples)} samples ({source})")
    subject.longest = max(read, key=lambda one: len(plain_text(one)), default=None)


def files(subject: Subject) -> Iterator[Finding]:
    """The weights are here, in the hub's cache, or can be fetched from the hub to a disk with room for them."""
    for flag, of_model in subject.models.items():
        yield weights_finding(flag, of_model, find_weights(of_model))


def weights_finding(flag: str, files: ModelFiles, found: WeightFiles) -> Finding:
    """What it means that the weights of `files`, which `flag` named, were `found` there."""
    size = "of unknown size" if found.num_bytes is None else f"of {gb(found.num_bytes)}"
    if found.where != "hub":
        there = "in the hub's cache" if found.where == "cache" else f"in {files.source}"
        return Finding.ok("files", f"{flag} {files.name}: weights {size} {there}")
    text = f"{flag} {files.name}: weights {size} are fetched from the hub"
    if found.num_bytes is not None and found.free is not None and found.num_bytes > found.free:
        remedy = "make room, or set HF_HOME to a folder on another disk"
        return Finding.fails("files", f"{text}, and its cache's disk has {gb(found.free)} free", remedy)
    return Finding.ok("files", f"{text}, by every node that has not done so")


def family(subject: Subject) -> Iterator[Finding]:
    """The engine can decode the model, and its checkpoint is what its configuration describes."""
    for flag, (config, _) in subject.described.items():
        of_model = subject.models[flag]
        if of_model.folder is not None:
            check_local(of_model, config)
        size = f"{config.num_hidden_layers} layers of width {config.hidden_size}, {config.vocab_size} tokens"
        what = f"{flag} is {config.model_type}: {size}, context {context_len(config)}"
        check_one_device(config, subject.config.kernels, subject.config.gpus_per_worker)
        if (why := why_borrowed(config)) is None:
            yield Finding.ok("family", what)
        else:
            remedy = "supported are " + ", ".join(FAMILIES)
            yield Finding.warning(
                "family", f"{what}; {why}: fallback to --kernels transformers, which is slower", remedy
            )


def heads(subject: Subject) -> Iterator[Finding]:
    """What the heads were made for, by their facts, is a model of this size, and the exits of the policy have heads.

    Whether they were made for these weights is known when these are loaded.
    """
    config, folders = subject.model_config, heads_folders(subject.config, subject.tasks)
    problems = []
    for folder in dict.fromkeys(folders.values()):
        facts = read_facts(folder)
        if facts is not None and facts.width != config.hidden_size:
            problems.append(_misfit("--heads", folder, facts, config.hidden_size))
        elif facts is not None:
            make_policy(subject.config.decode, facts.exits_of(subject.config.decode.head), config.num_hidden_layers)
    for folder in dict.fromkeys(subject.medusa_folders.values()):
        facts = read_facts(folder, MEDUSA_FACTS)
        if facts is not None and facts.width != config.hidden_size:
            problems.append(_misfit("--medusa-heads", folder, facts, config.hidden_size))
    yield from problems
    if not problems:
        sizes = {str(folder): head_bytes(folder) for folder in folders.values()}
        yield Finding.ok("heads", ", ".join(f"{folder} ({gb(n)})" for folder, n in sizes.items()) or "none are read")


def head_bytes(folder: Path, tensors: str = TENSORS) -> int:
    """The bytes of the tensors in `folder`; 0 where there are none."""
    path = folder / tensors
    return path.stat().st_size if path.is_file() else 0


def _misfit(flag: str, folder: Path, facts: HeadFacts, width: int) -> Finding:
    what = f"{flag} {str(folder)!r}: made for {facts.base_model!r} of width {facts.width}, this model's is {width}"
    return Finding.fails("heads", what, "train heads for this model with `adadecode train-heads`")
