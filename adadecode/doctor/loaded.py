"""What only the loaded model tells: rows that are independent, equal logits, heads of these weights, graphs, tokens."""

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from adadecode.doctor.finding import Finding
from adadecode.doctor.machine import SLOWER, gb
from adadecode.doctor.subject import Subject
from adadecode.engine.decode import check_can_decode, decode
from adadecode.engine.draft_model import check_draft_model
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request
from adadecode.engine.invariance import NUM_POSITIONS, check_every_count, check_rows_independent, check_ties
from adadecode.engine.policy import Policy, make_policy
from adadecode.engine.sampling import draw_of
from adadecode.evaluation.compare import compare
from adadecode.kernels.choose import PLAIN_KERNELS
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import Segment
from adadecode.kernels.weights import ExitTest
from adadecode.methods import METHODS, REFERENCE
from adadecode.model.decoder import DecoderModel
from adadecode.model.foreign import foreign_facts
from adadecode.model.load import use_threads
from adadecode.model.medusa_heads import MedusaHeads
from adadecode.model.memory import is_out_of_memory, out_of_memory_named
from adadecode.report.foreign import foreign_text

if TYPE_CHECKING:
    from adadecode.engine.tally import Decoded

OUTPUT_LEN, PROMPT_LEN = 16, 8  # tokens of the generation that is tried


def model(subject: Subject) -> Iterator[Finding]:
    """The model can be loaded."""
    use_threads(subject.config.threads)
    started = time.perf_counter()
    loaded = subject.model
    seconds = time.perf_counter() - started
    for note in loaded.notes:
        yield Finding.warning("model", note, "check that the files are those of one model")
    if loaded.chosen_kernels.because is not None and loaded.device.type == "cuda":  # what only the device tells
        what = f"{loaded.kernels}, because {loaded.chosen_kernels.because}"
        yield Finding.warning("kernels", what, SLOWER)
    layers = ", ".join(f"{stage.start + 1}-{stage.stop} on {stage.device}" for stage in loaded.weights.stages)
    where = f"layers {layers}" if layers else f"on {loaded.device.type}"
    yield Finding.ok("model", f"loaded in {seconds:.1f} s, {loaded.kernels} kernels, {subject.config.dtype} {where}")


def rows(subject: Subject) -> Iterator[Finding]:
    """A row has its own bits in every slot, whoever is beside it, and for every number of rows."""
    loaded, width = subject.model, subject.width
    lengths = tuple(sorted({*NUM_POSITIONS, subject.num_positions}))
    with out_of_memory_named():
        check_rows_independent(loaded, width, lengths)
        check_every_count(loaded, width, lengths[0])
    columns = sorted({loaded.num_columns(min(num, loaded.context_len)) for num in lengths})
    at = ", ".join(map(str, columns))
    yield Finding.ok("rows", f"the same bits in each of {width} slots and among 1 to {width} rows, at S = {at}")


def ties(subject: Subject) -> Iterator[Finding]:
    """Among equal logits every row takes the lowest id."""
    loaded, width = subject.model, subject.width
    try:
        num_tied = check_ties(loaded, width)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = "there is no room for a second LM head with equal rows, so who wins among equal logits was not seen"
        yield Finding.warning("ties", what, "a run needs no such room; end what else is on this device to see it")
        return
    if num_tied:
        yield Finding.ok("ties", f"the lowest id of equal logits, in {num_tied} rows in which they were planted")
    else:
        what = "no equal logits came of equal rows of the LM head, so who wins among them was not seen"
        yield Finding.warning("ties", what, "another --dtype or --threads may give some")


def heads(subject: Subject) -> Iterator[Finding]:
    """The heads were made for these weights, have the exits that the policy wants, and what each method drafts with."""
    loaded, found, medusa = subject.model, dict[str, None](), dict[str, MedusaHeads]()
    check_draft_model(subject.draft)
    for task in subject.tasks:
        exit_heads = subject.heads(task)
        policy = _policy(subject, task)
        methods = [METHODS[name] for name in subject.config.methods]
        if (of_medusa := subject.medusa(task)) is not None:
            medusa[task] = of_medusa
        check_can_decode(loaded, methods, policy, exit_heads, subject.draft, of_medusa)
        if exit_heads is not None:
            found[f"{task}: exits {','.join(map(str, policy.exits)) or 'none'} (hash {exit_heads.content_hash})"] = None
    facts = foreign_facts(subject.loaded_heads, medusa) | {"model_hash": loaded.model_hash}
    if (foreign := foreign_text(facts)) is not None:
        found[foreign] = None
    yield Finding.ok("exits", "; ".join(found) or "none are used")


def graphs(subject: Subject) -> Iterator[Finding]:
    """On a CUDA device: the graphs of a round, where its steps are any, can be captured and replayed."""
    loaded = subject.model
    if loaded.device.type != "cuda" or loaded.kernels in PLAIN_KERNELS:
        return
    for device in loaded.devices:
        torch.cuda.reset_peak_memory_stats(device)
    for task in subject.tasks:
        policy, exit_heads = _policy(subject, task), subject.heads(task)
        tests = [test for drafter in drafters_of(policy, exit_heads) for test in drafter.tests]
        with out_of_memory_named():
            one_round(loaded, policy, tests, subject.num_positions, draw_of(subject.config, None, 0))
    torch.cuda.synchronize()
    reserved = sum(map(torch.cuda.max_memory_reserved, loaded.devices))
    yield Finding.ok("graphs", f"captured and replayed; {gb(reserved)} reserved with model and cache")


@torch.inference_mode()
def one_round(
    loaded: DecoderModel, policy: Policy, tests: Sequence[ExitTest], num_positions: int, draw: Draw | None = None
) -> None:
    """One row through every segment, test and verification of a round of `policy`; on CUDA each becomes a graph."""
    step = loaded.new_step(policy.width, num_positions)
    step.draw_by(draw)
    boundaries = (*policy.exits, loaded.num_layers)
    step.prepare(boundaries, tests)
    prompt_ids = _prompt(loaded.vocab_size, loaded.context_len)
    step.prefill(prompt_ids)
    step.begin(len(prompt_ids))
    step.put(0, [0])
    at_exit = dict(zip(policy.exits, tests, strict=True))
    for start, stop in pairwise((0, *boundaries)):
        if stop in at_exit:
            step.run_to_exit(Segment(0, 1, start, stop), at_exit[stop], 0)
        else:
            step.run(0, 1, start, stop)
    step.verify(0, 1)


def methods(subject: Subject) -> Iterator[Finding]:
    """Each method decodes a short prompt, and those that owe vanilla's tokens and logits have them."""
    loaded, config = subject.model, subject.config
    task = subject.tasks[0]
    prompt_ids = _prompt(loaded.vocab_size, loaded.context_len)
    draw = draw_of(config, None, len(prompt_ids))
    request = Request(prompt_ids, OUTPUT_LEN, record_logits=config.check_logits, draw=draw)
    policy, exit_heads, medusa = _policy(subject, task), subject.heads(task), subject.medusa(task)
    found: dict[str, Decoded] = {}
    for name in config.methods:
        with out_of_memory_named():
            found[name] = decode(loaded, METHODS[name], request, policy, exit_heads, subject.draft, medusa)
    exact = [
        name
        for name in found
        if METHODS[name].is_compared(is_sampled=draw is not None) and METHODS[name].owes == "exact"
    ]
    for name in exact:
        compared = compare(found[REFERENCE], found[name], config.dtype, draw)
        if compared.parity != "exact" or compared.logits_equal is False:
            differing = "logits" if compared.parity == "exact" else "tokens"
            what = f"{name} gives other {differing} than {REFERENCE} for a short prompt"
            yield Finding.fails("methods", what, "this is a bug or a broken device: report it with these lines")
            return
    equal = f"; {', '.join(exact)} with the tokens and logits of {REFERENCE}" if exact else ""
    yield Finding.ok("methods", f"{', '.join(config.methods)} decode{equal}")


def _policy(subject: Subject, task: str) -> Policy:
    exit_heads = subject.heads(task)
    exits = None if exit_heads is None else exit_heads.exits
    return make_policy(subject.config.decode, exits, subject.model.num_layers)


def _prompt(vocab_size: int, context_len: int) -> list[int]:
    """Tokens of a prompt that leaves room for an output."""
    return [i % vocab_size for i in range(1, 1 + max(1, min(PROMPT_LEN, context_len // 2)))]
