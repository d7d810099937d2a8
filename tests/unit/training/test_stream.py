"""The stream of batches: every output once an epoch, a split without overlap, and memory that does not grow."""

import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from adadecode.settings import TrainConfig
from adadecode.training.outputs import make_outputs, read_part
from adadecode.training.stream import WINDOW_PARTS, OutputStream
from tests.models import tiny_model

ROOT = Path(__file__).parents[3]
PROMPTS = [[1 + i % 90, 1 + i // 90, *range(1, 1 + i % 6)] for i in range(60)]
CONFIG = TrainConfig(model="tiny", task="jsonl", max_new_tokens=3, part_prompts=4)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    out = tmp_path_factory.mktemp("outputs")
    return out, make_outputs(tiny_model(), PROMPTS, CONFIG, out, lambda line: None)


def stream_of(stored, held_out=0.2, seed=0, batch_tokens=24):
    return OutputStream(*stored, held_out=held_out, seed=seed, batch_tokens=batch_tokens)


def flat(batches):
    return [tuple(output.prompt_ids) for batch in batches for output in batch]


def test_an_epoch_has_every_training_output_once_and_no_held_out_one(stored):
    stream = stream_of(stored)
    train, held_out = flat(stream.train_batches()), flat(stream.held_out_batches())
    assert (len(train), len(held_out)) == (stream.num_train, stream.num_held_out) == (48, 12)
    assert sorted(train + held_out) == sorted(map(tuple, PROMPTS))
    assert sorted(tuple(output.prompt_ids) for output in stream.train_outputs()) == sorted(train)


def test_the_order_is_another_in_each_epoch_and_with_each_seed_and_the_same_when_asked_again(stored):
    orders = [flat(stream_of(stored).train_batches(epoch)) for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert flat(stream_of(stored).train_batches(1)) == orders[1]
    assert set(flat(stream_of(stored, seed=1).held_out_batches())) != set(flat(stream_of(stored).held_out_batches()))


def test_outputs_of_a_window_of_parts_are_mixed(stored):
    out, parts = stored
    part_of = {tuple(o.prompt_ids): part.part_idx for part in parts for o in read_part(out, part)}
    stream = stream_of(stored)
    first = {part_of[prompt] for prompt in flat(stream.window_batches(0, 0))}
    assert len(first) == WINDOW_PARTS
    assert first != set(range(WINDOW_PARTS)), "the parts of a window are a seeded choice"
    assert stream.num_windows == 4


def test_batches_keep_to_the_token_limit(stored):
    for batch in stream_of(stored).train_batches():
        assert max(len(o.prompt_ids) + len(o.output_ids) - 1 for o in batch) * len(batch) <= 24


@pytest.mark.parametrize(("num_prompts", "share", "num_held_out"), [(2, 0.01, 1), (2, 0.99, 1), (50, 0.1, 5)])
def test_held_out_prompts_are_at_least_one_and_leave_one_to_train_on(num_prompts, share, num_held_out, tmp_path):
    parts = make_outputs(tiny_model(), PROMPTS[:num_prompts], CONFIG, tmp_path, lambda line: None)
    stream = OutputStream(tmp_path, parts, held_out=share, seed=0, batch_tokens=24)
    assert (stream.num_held_out, stream.num_train) == (num_held_out, num_prompts - num_held_out)


PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.unit.training.test_stream import peak_of_training
print(peak_of_training(int(sys.argv[3]), Path(sys.argv[2])))
"""


class CountedPrompt(list[int]):
    """A prompt that can be watched: a list has no weak references."""

    __slots__ = ("__weakref__",)


def peak_of_training(num_prompts: int, out: Path) -> str:
    """The most prompts alive at a time, and the most stored outputs alive at a time, of a whole training."""
    from adadecode.training import stream
    from adadecode.training.train import train_heads

    alive: weakref.WeakValueDictionary[int, CountedPrompt] = weakref.WeakValueDictionary()
    read: weakref.WeakValueDictionary[int, CountedPrompt] = weakref.WeakValueDictionary()
    most = {"prompts": 0, "outputs": 0}

    class Prompts:
        def __iter__(self):
            for i in range(num_prompts):
                prompt = CountedPrompt([1 + i % 90, 1 + i // 90, 7])
                alive[id(prompt)] = prompt
                most["prompts"] = max(most["prompts"], len(alive))
                yield prompt

    def counted_read(folder, part):
        outputs = read_part(folder, part)
        prompts = [CountedPrompt(output.prompt_ids) for output in outputs]
        read.update({id(prompt): prompt for prompt in prompts})
        most["outputs"] = max(most["outputs"], len(read))
        return [output._replace(prompt_ids=prompt) for output, prompt in zip(outputs, prompts, strict=True)]

    stream.read_part = counted_read
    config = TrainConfig(
        model="tiny", task="jsonl", dtype="float32", max_new_tokens=2, epochs=2, part_prompts=8, batch_tokens=64
    )
    train_heads(tiny_model(num_layers=2), Prompts(), config, out, lambda line: None)
    return f"{most['prompts']} {most['outputs']}"


@pytest.mark.slow
def test_as_many_prompts_and_outputs_are_in_memory_for_120_prompts_as_for_72(tmp_path):
    peaks = []
    for num_prompts in (72, 120):
        out = tmp_path / str(num_prompts)
        command = [sys.executable, "-c", PEAK, str(ROOT), str(out), str(num_prompts)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append([int(number) for number in done.stdout.split()])
    (few_prompts, few_outputs), (many_prompts, many_outputs) = peaks
    assert few_prompts == many_prompts <= 2 * 8, "the chunk at hand and the one being read"
    bound = 2 * WINDOW_PARTS * 8  # the window at hand and the one being read
    assert max(few_outputs, many_outputs) <= bound, (few_outputs, many_outputs)
