"""Mutations of the code that tables and runs rest on: each is one line made wrong, and the tests that must notice."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """`before`, which stands once in `file`, becomes `after`; `why_not` says why no test can notice, where none can."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]
    why_not: str | None = None


ENGINE = ("tests/unit/engine/test_rounds.py", "tests/unit/engine/test_tally.py", "tests/unit/engine/test_decode.py")
DRAFTS = (
    *ENGINE,
    "tests/unit/engine/test_ngram.py",
    "tests/unit/engine/test_rejection.py",
    "tests/unit/engine/test_parity.py",
)
KERNELS = ("tests/unit/kernels/test_native.py", "tests/unit/kernels/test_step.py")
STEPS = (*KERNELS, "tests/unit/kernels/test_kv_cache.py", "tests/unit/engine/test_rounds.py")
REPORT = ("tests/unit/report",)
RAY = ("tests/unit/ray_jobs",)
RUNS = ("tests/unit/runs/test_faults.py", "tests/unit/runs/test_lease.py", "tests/unit/runs/test_storage.py")
CONTRADICTIONS = ("tests/unit/runs/test_contradictions.py",)

MUTATIONS = (
    # engine
    Mutation(
        "an accepted slot is not checked for finite logits",
        "adadecode/engine/round.py",
        "check_finite(tops[: num_accepted + 1], round_.first_position)",
        "check_finite(tops[:num_accepted], round_.first_position)",
        DRAFTS,
    ),
    Mutation(
        "a round ends with the last slot's token",
        "adadecode/engine/round.py",
        "return Verdict(num_accepted, predicted[num_accepted])",
        "return Verdict(num_accepted, predicted[-1])",
        DRAFTS,
    ),
    Mutation(
        "early rejections are forgotten in the counts",
        "adadecode/engine/round.py",
        "round_.dropped += round_.draft_exits[slot:]",
        "round_.dropped += round_.draft_exits[slot + 1 :]",
        DRAFTS,
    ),
    Mutation(
        "an output may be one token longer than asked",
        "adadecode/engine/generate.py",
        "while output[-1] not in eos and len(output) < limit:",
        "while output[-1] not in eos and len(output) <= limit:",
        DRAFTS,
    ),
    Mutation(
        "a round drafts past the limit",
        "adadecode/engine/generate.py",
        "max_drafts = min(policy.max_drafts, limit - len(output) - 1)",
        "max_drafts = min(policy.max_drafts, limit - len(output))",
        DRAFTS,
    ),
    Mutation(
        "a confidence of gamma is enough",
        "adadecode/engine/generate.py",
        "if not may_draft or confidence <= drafter.gamma:",
        "if not may_draft or confidence < drafter.gamma:",
        DRAFTS,
    ),
    Mutation(
        "a rejection needs no more than its own confidence",
        "adadecode/engine/generate.py",
        "if confidence > reject and token_id != round_.token_ids[slot + 1]:",
        "if confidence >= reject and token_id != round_.token_ids[slot + 1]:",
        DRAFTS,
    ),
    Mutation(
        "what follows a confident EOS is drafted",
        "adadecode/engine/generate.py",
        "may_draft = drafter.boundary == 0",
        "may_draft = True",
        DRAFTS,
    ),
    Mutation(
        "the prefill counts as a round",
        "adadecode/engine/tally.py",
        "num_rounds=len(self._clocks) - 2,",
        "num_rounds=len(self._clocks) - 1,",
        ENGINE,
    ),
    Mutation(
        "rejected drafts are not drafted",
        "adadecode/engine/tally.py",
        "        self._drafted += round_.dropped\n",
        "",
        DRAFTS,
    ),
    Mutation(
        "an n-gram that changed its mind is as sure",
        "adadecode/engine/ngram.py",
        "index[ngram] = (token_id, 1, True)",
        "index[ngram] = (token_id, 1, False)",
        DRAFTS,
    ),
    Mutation(
        "a step has no row for the current token",
        "adadecode/engine/policy.py",
        "return -(-(1 + max_drafts) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE",
        "return -(-max(1, max_drafts) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE",
        ("tests/unit/engine",),
    ),
    # kernels
    Mutation(
        "a row attends to the column after its own",
        "adadecode/kernels/eager.py",
        "mask.masked_fill(self._columns > positions[:, None]",
        "mask.masked_fill(self._columns > positions[:, None] + 1",
        STEPS,
    ),
    Mutation(
        "the last position is the scratch column",
        "adadecode/kernels/kv_cache.py",
        "return -(-(num_positions + 1) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE",
        "return -(-num_positions // COLUMN_MULTIPLE) * COLUMN_MULTIPLE",
        STEPS,
    ),
    Mutation(
        "a gate at its threshold skips the test",
        "adadecode/kernels/step.py",
        "step.probe(test.gate, first_tested) < test.least",
        "step.probe(test.gate, first_tested) <= test.least",
        STEPS,
    ),
    Mutation(
        "native ties go to another id",
        "adadecode/kernels/native.cpp",
        "int best = 0;\n            while (best + 1 < V && row[best] != top) best++;",
        "int best = V - 1;\n            while (best > 0 && row[best] != top) best--;",
        KERNELS,
    ),
    Mutation(
        "native kernels forget a NaN",
        "adadecode/kernels/native.cpp",
        "tops[m] = sum(nans) > 0.0f ? NAN : top;",
        "tops[m] = top;",
        KERNELS,
    ),
    Mutation(
        "native attention sees one column less",
        "adadecode/kernels/native.cpp",
        "for (int c = num_seen[q]; c < stride; c++) row[c] = -INFINITY;",
        "for (int c = num_seen[q] - 1; c < stride; c++) row[c] = -INFINITY;",
        KERNELS,
    ),
    # evaluation
    Mutation(
        "the order of methods is never reversed",
        "adadecode/methods.py",
        "return rotated if turn // len(methods) % 2 == 0 else rotated[::-1]",
        "return rotated",
        ("tests/unit/evaluation/test_rows.py",),
    ),
    Mutation(
        "memory that ran out is not tried again",
        "adadecode/evaluation/failures.py",
        "if isinstance(result, Failure) and result.is_out_of_memory:",
        "if isinstance(result, Failure) and False:",
        ("tests/unit/evaluation/test_failures.py",),
    ),
    Mutation(
        "one error more than allowed is let pass",
        "adadecode/evaluation/progress.py",
        "if num_error_samples > self.allowed:",
        "if num_error_samples > self.allowed + 1:",
        ("tests/unit/evaluation/test_progress.py",),
    ),
    Mutation(
        "digests are of the first token's logits",
        "adadecode/evaluation/compare.py",
        "hashlib.blake2b(as_bytes.tobytes(), digest_size=16)",
        "hashlib.blake2b(as_bytes[:1].tobytes(), digest_size=16)",
        ("tests/unit/evaluation/test_compare.py",),
    ),
    # report
    Mutation(
        "the baseline is chosen by totals for both statistics",
        "adadecode/report/summary.py",
        "self._baselines[mean_log_s], self._baselines[total_s]",
        "self._baselines[total_s], self._baselines[total_s]",
        REPORT,
    ),
    Mutation(
        "the slower vanilla is the baseline",
        "adadecode/report/stats.py",
        "return min(names, key=lambda name: statistic(prompts, times_s[name]))",
        "return max(names, key=lambda name: statistic(prompts, times_s[name]))",
        REPORT,
    ),
    Mutation(
        "repeats count as prompts",
        "adadecode/report/stats.py",
        "log_ratios = _mean_by_prompt(prompts, np.log(base / method))",
        "log_ratios = np.log(base / method)",
        REPORT,
    ),
    Mutation(
        "the interval is not corrected for skewness",
        "adadecode/report/stats.py",
        "SKEWNESS_FACTOR = 1.25",
        "SKEWNESS_FACTOR = 0.0",
        REPORT,
    ),
    Mutation(
        "the interval is one of 90 %",
        "adadecode/report/stats.py",
        "CONFIDENCE_LEVEL = 0.95",
        "CONFIDENCE_LEVEL = 0.90",
        REPORT,
    ),
    Mutation(
        "an output that ends earlier is not different",
        "adadecode/report/parity.py",
        "return None if len(a) == len(b) else common_len",
        "return None",
        REPORT,
    ),
    Mutation(
        "the finish reason does not matter",
        "adadecode/report/parity.py",
        "same_output = idx is None and finish_equal",
        "same_output = idx is None",
        REPORT,
    ),
    Mutation(
        "a claim of equal logits is believed",
        "adadecode/report/parity.py",
        'logits_equal is not None and claim["logits_equal"] not in (None, logits_equal)',
        'logits_equal is None and claim["logits_equal"] not in (None, logits_equal)',
        REPORT,
    ),
    Mutation(
        "a method that failed on a sample owes nothing for it",
        "adadecode/report/summary.py",
        'return sum(vanilla.get(row["task"], 0) for row in rows',
        'return sum(min(row["n"], vanilla.get(row["task"], 0)) for row in rows',
        REPORT,
    ),
    Mutation(
        "times may be zero",
        "adadecode/report/row_checks.py",
        "return is_ok & ~_is_positive(e2e_s)",
        "return is_ok & ~(e2e_s >= 0)",
        ("tests/unit/evaluation/test_capacity.py",),
    ),
    # ray_jobs
    Mutation(
        "an actor that loaded is trusted again",
        "ray_jobs/places.py",
        "record.num_failures, record.has_finished, record.rests_until = 0, True, 0.0",
        "record.num_failures, record.has_finished, record.rests_until = 0, False, 0.0",
        RAY,
    ),
    Mutation(
        "deaths at one place count again and again",
        "ray_jobs/places.py",
        "return sum(counting) >= enough and not self._untried(item, actors, now)",
        "return sum(counting) >= enough",
        RAY,
    ),
    Mutation(
        "a bad place never rests",
        "ray_jobs/places.py",
        "record.rests_until = now + min(rest_s, self._limits.longest_rest_s)",
        "record.rests_until = now",
        RAY,
    ),
    Mutation(
        "the deadline of an item that ended actors is not longer",
        "ray_jobs/scheduler.py",
        "patience = 2 ** self.num_deaths(item.name)",
        "patience = 1",
        RAY,
    ),
    Mutation(
        "a preempted actor is held against its item",
        "ray_jobs/scheduler.py",
        "        if not death.preempted:\n            self._count(actor, death, now)",
        "        self._count(actor, death, now)",
        RAY,
    ),
    Mutation(
        "an item that is done is done again after a death",
        "ray_jobs/scheduler.py",
        "self._pending = deque(item for item in self._pending if item.name != item_name)",
        "self._pending = deque(self._pending)",
        RAY,
    ),
    Mutation(
        "an item under suspicion is run twice at once",
        "ray_jobs/scheduler.py",
        "return state is not None and len(state.actors) == 1 and not state.is_quarantined",
        "return state is not None and len(state.actors) == 1",
        RAY,
    ),
    Mutation(
        "after a stop what is queued goes on",
        "ray_jobs/scheduler.py",
        "actions += [self._cancel(actor, item) for item in actor.items[1:]]",
        "actions += []",
        RAY,
    ),
    Mutation(
        "one refusal ends a run that others have loaded for",
        "ray_jobs/setbacks.py",
        "if self.refusal is not None and not self.has_loaded and not any(",
        "if self.refusal is not None and not any(",
        RAY,
    ),
    Mutation(
        "a lost actor waits until loads that failed elsewhere are tried again",
        "ray_jobs/scheduler.py",
        "        if actor.phase is Phase.READY:\n            self._setbacks.begin_anew(now)\n",
        "",
        RAY,
    ),
    Mutation(
        "a run that had begun ends though a place is left",
        "ray_jobs/setbacks.py",
        "self.limits.max_load_failures * (1 if is_everywhere else LONG)",
        "self.limits.max_load_failures",
        RAY,
    ),
    # runs
    Mutation(
        "a driver elsewhere lives for hours after its last heartbeat",
        "adadecode/runs/lease.py",
        "age_s > 2 * STALE_S",
        "age_s > 200 * STALE_S",
        ("tests/unit/runs/test_lease.py",),
    ),
    Mutation(
        "a store that is busy is not asked again",
        "adadecode/runs/bucket.py",
        "(status in (408, 429) or status >= 500)",
        "(status == 408 or status > 500)",
        ("tests/unit/runs/test_faults.py",),
    ),
    Mutation(
        "a file's content is not on disk before its name",
        "adadecode/files.py",
        "            os.fsync(file.fileno())\n",
        "",
        ("tests/unit/runs/test_storage.py", "tests/unit/runs/test_faults.py", "tests/unit/test_files.py"),
    ),
    Mutation(
        "a new name is not on disk",
        "adadecode/runs/disk.py",
        "                    is_new = _linked(temporary, path)\n                sync_folder(path.parent)\n",
        "                    is_new = _linked(temporary, path)\n",
        ("tests/unit/runs/test_storage.py", "tests/unit/runs/test_faults.py"),
    ),
    Mutation(
        "a folder that cannot be listed is empty",
        "adadecode/runs/disk.py",
        "    except FileNotFoundError:\n        return\n    for entry",
        "    except OSError:\n        return\n    for entry",
        RUNS,
    ),
    Mutation(
        "a create whose answer was lost is another's",
        "adadecode/runs/disk.py",
        "return is_new or path.read_bytes() == content",
        "return is_new",
        RUNS,
    ),
    Mutation(
        "a run is closed whoever has it",
        "adadecode/runs/run.py",
        "    prepared.lease.confirm()\n",
        "",
        ("tests/unit/runs/test_lease.py",),
    ),
    Mutation(
        "a lease is everyone's who knows its number",
        "adadecode/runs/lease.py",
        'return content["owner"]["id"] == self._content["owner"]["id"]',
        "return True",
        ("tests/unit/runs/test_lease.py",),
    ),
    Mutation(
        "a full disk is asked again",
        "adadecode/runs/disk.py",
        "*(errno.ESTALE, errno.EIO,",
        "*(errno.ENOSPC, errno.ESTALE, errno.EIO,",
        RUNS,
    ),
)
