"""The clock and the counts of one generation, and the generation they come to."""

import time
from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from adadecode.engine.round import Round
from adadecode.records import Generation, Rejected


class Decoded(NamedTuple):
    """A generation and, when asked for, the logits `[n, V]` of its n output tokens in the model's dtype, on the host.

    Without verification there are none: nobody computed those of the drafts.
    """

    generation: Generation
    logits: Tensor | None


class Tally:
    """What a generation has taken and given so far; its clock starts when it is made, before the prefill.

    It stands still while logits are kept: they go to the host, so that a long output's do not fill the device.
    """

    def __init__(
        self,
        device: torch.device,
        num_layers: int,
        draft_exits: tuple[int, ...] = (),
        *,
        record_logits: bool = False,
    ) -> None:
        """Drafts are counted by where they came from, one of `draft_exits`, which are not `num_layers`."""
        self._device, self._num_layers, self._draft_exits = device, num_layers, draft_exits
        # whole numbers in flat lists: a round that is over leaves nothing for Python's collector to look through
        self._depths, self._drafted = list[int](), list[int]()
        self._rejected: list[int] | None = []  # the values of each Rejected one after another; None: nobody saw them
        self._layers_run = 0
        self._logits: list[Tensor] | None = [] if record_logits else None
        self._still_ns = 0  # how long the clock stood still
        self._clocks = [clock_ns(device)]

    def add_token(self, logits: Tensor | None = None) -> None:
        """Notes the time, and one token of the full model with its `logits` `[V]`; the first comes from the prefill."""
        now = self._read_clock()
        if self._depths:
            self._layers_run += self._num_layers
        self._depths.append(self._num_layers)
        if logits is not None:
            self._keep(logits[None], 1, now)

    def add_pass(self, num_drafted: int, num_accepted: int) -> None:
        """Notes the time, and a pass of the full model that kept so many of the drafts, all of one place, and its token.

        The first comes from the prefill. Each draft took the layers before its place.
        """
        self._read_clock()
        boundary, self._rejected = next(iter(self._draft_exits), 0), None
        self._layers_run += boundary * num_drafted
        self._drafted += [boundary] * num_drafted
        before = [boundary] * num_accepted
        if self._depths:
            self._layers_run += self._num_layers
        self._depths += [*before, self._num_layers]

    def add_round(self, round_: Round, num_accepted: int, logits: Tensor) -> None:
        """Notes the time, and a round that is over; `logits` `[W, V]` are the step's, which the next round overwrites.

        It gave the first `num_accepted` drafts and a token of the full model. Where an accepted draft is the output's
        last token, that is the full model's, which gave it too.
        """
        now = self._read_clock()
        if round_.dropped or num_accepted < len(round_.draft_exits):  # most rounds reject nothing
            self._note_rejected(round_, num_accepted)
        self._layers_run += round_.layers_passed
        self._depths += round_.draft_exits[:num_accepted]
        self._depths.append(self._num_layers)
        self._drafted += round_.draft_exits
        self._drafted += [exit_layer for _, _, exit_layer in round_.dropped]
        self._keep(logits, num_accepted + 1, now)

    def _note_rejected(self, round_: Round, num_accepted: int) -> None:
        """Keeps the drafts of `round_` beyond the first `num_accepted`, and before them those rejected early."""
        if self._rejected is None:
            return
        round_idx, start = len(self._clocks) - 3, len(self._depths)
        for place, token_id, exit_layer in round_.dropped:
            self._rejected += (round_idx, start + place, token_id, exit_layer)
        for place in range(num_accepted, round_.num_drafts):
            self._rejected += (round_idx, start + place, round_.token_ids[place + 1], round_.draft_exits[place])

    def _read_clock(self) -> int:
        """Notes the time; returns what the clock of the device showed."""
        now = clock_ns(self._device)
        self._clocks.append(now - self._still_ns)
        return now

    def _keep(self, logits: Tensor, num_rows: int, now: int) -> None:
        """Copies the first rows of `logits` `[W, V]` to the host, where they are wanted; the clock stands from `now` on."""
        if self._logits is not None:
            self._logits.append(logits[:num_rows].to("cpu", copy=True))
            self._still_ns += clock_ns(self._device) - now

    def decoded(self, output: list[int], eos_token_ids: Collection[int], *, is_stopped: bool = False) -> Decoded:
        """The generation that gave `output`, and its logits when they were recorded; `is_stopped` by a stop string."""
        started, first, *_, last = (*self._clocks[:2], self._clocks[-1])
        generation = Generation(
            output_token_ids=tuple(output),
            finish_reason="stop" if is_stopped else "eos" if output[-1] in eos_token_ids else "length",
            ttft_s=(first - started) / 1e9,
            e2e_s=(last - started) / 1e9,
            step_gaps_s=tuple((b - a) / 1e9 for a, b in pairwise(self._clocks[1:])),
            num_rounds=len(self._clocks) - 2,
            layers_run=self._layers_run,
            exits=self._draft_exits,
            drafted_per_exit=tuple(map(self._drafted.count, self._draft_exits)),
            accepted_per_exit=tuple(map(self._depths.count, self._draft_exits)),
            draft_depths=tuple(self._depths),
            rejected=None
            if self._rejected is None
            else tuple(map(Rejected, *(self._rejected[at::4] for at in range(4)))),
        )
        return Decoded(generation, None if self._logits is None else torch.cat(self._logits))


def clock_ns(device: torch.device) -> int:
    """`perf_counter_ns` once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter_ns()
