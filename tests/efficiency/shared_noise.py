"""How many drafts are kept when exits draw by the noise that verifies, and when they draw by noise of their own.

The same prompts are decoded twice at each temperature by the demo's heads or those given: as the engine does it, and with
every test of an exit drawn by another key. Verification draws by the same key both times, so the outputs are the same,
which is asserted. N-grams are left out: they draw nothing.

    python tests/efficiency/shared_noise.py --limit 24
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import click

import adadecode
from adadecode import LanguageModel
from adadecode.kernels.sampling import Draw
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest, Head
from adadecode.settings import EvalConfig
from adadecode.settings.reading import settings_of
from adadecode.tasks import load_examples


class OwnNoise:
    """A decode step whose tests draw by another key than its verifications."""

    def __init__(self, step: DecodeStep) -> None:
        self._step = step
        self._draw: Draw | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def draw_by(self, draw: Draw | None) -> None:
        self._draw = draw
        self._step.draw_by(draw)

    @contextmanager
    def _other_key(self) -> Generator[None]:
        assert self._draw is not None
        self._step.draw_by(replace(self._draw, key=self._draw.key ^ 1))
        try:
            yield
        finally:
            self._step.draw_by(self._draw)

    def run_to_exit(self, segment: Segment, test: ExitTest, first_tested: int) -> Proposals | None:
        with self._other_key():
            return self._step.run_to_exit(segment, test, first_tested)

    def test(self, head: Head, lo: int, hi: int) -> Proposals:
        with self._other_key():
            return self._step.test(head, lo, hi)


@contextmanager
def own_noise(lm: LanguageModel) -> Generator[None]:
    """Within, the exits of `lm` draw by noise of their own."""
    lm.model.new_step = lambda *size: OwnNoise(type(lm.model).new_step(lm.model, *size))
    try:
        yield
    finally:
        del lm.model.new_step


def shares(lm: LanguageModel, prompts: list[str], max_new_tokens: int) -> tuple[float, float, list[tuple[int, ...]]]:
    """The share of drafts that were kept, tokens per round, and the outputs."""
    generations = [lm.generate(prompt, max_new_tokens=max_new_tokens).generation for prompt in prompts]
    num_tokens = sum(len(one.output_token_ids) - 1 for one in generations)
    kept, drafted = (sum(getattr(one, name) for one in generations) for name in ("num_accepted", "num_drafted"))
    return (
        kept / max(1, drafted),
        num_tokens / sum(one.num_rounds for one in generations),
        [one.output_token_ids for one in generations],
    )


@click.command(help=__doc__)
@click.option("--model", default="demo")
@click.option("--heads", default=None)
@click.option("--task", default="demo-math")
@click.option("--data-file", default=None)
@click.option("--limit", default=24)
@click.option("--max-new-tokens", default=128)
@click.option("--gamma", default=0.5, help="The confidence that an exit's proposal must exceed.")
@click.option("--temperature", "temperatures", multiple=True, type=float, default=(0.7, 1.0))
def main(
    model: str,
    heads: str | None,
    task: str,
    data_file: str | None,
    limit: int,
    max_new_tokens: int,
    gamma: float,
    temperatures: tuple[float, ...],
) -> None:
    data = settings_of(EvalConfig, {"task": task, "limit": limit, "data_file": data_file})
    prompts = [example.prompt for example in load_examples(task, data)]
    print("temperature  noise   kept drafts  tokens/round")
    for temperature in temperatures:
        lm = adadecode.load(model, heads, temperature=temperature, gamma=gamma, ngram=None, domain="math")
        shared = shares(lm, prompts, max_new_tokens)
        with own_noise(lm):
            own = shares(lm, prompts, max_new_tokens)
        assert shared[2] == own[2], "whoever drafts, verification draws the same tokens"
        for name, (kept, per_round, _) in (("shared", shared), ("own", own)):
            print(f"{temperature:<11g}  {name:6}  {kept:10.1%}  {per_round:12.2f}", flush=True)


if __name__ == "__main__":
    main()
