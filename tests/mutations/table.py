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
COMPARISON = ("tests/unit/comparison",)
RAY = ("tests/unit/ray_jobs",)
RUNS = ("tests/unit/runs/test_faults.py", "tests/unit/runs/test_lease.py", "tests/unit/runs/test_storage.py")
BAD_PLACES = ("tests/unit/ray_jobs/test_bad_places.py",)

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
        "if not may_draft or pending * confidence <= drafter.gamma:",
        "if not may_draft or pending * confidence < drafter.gamma:",
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
        "adadecode/engine/suffixes.py",
        "self._has_changed[state] = went_on[state] != NEVER",
        "self._has_changed[state] = False",
        DRAFTS,
    ),
    Mutation(
        "a context that is split forgets how it went on",
        "adadecode/engine/suffixes.py",
        "self._went_on[copy], self._streak[copy] = self._went_on[found], self._streak[found]",
        "self._went_on[copy], self._streak[copy] = NEVER, 0",
        DRAFTS,
    ),
    Mutation(
        "a step has no row for the current token",
        "adadecode/engine/policy.py",
        "return -(-(1 + max_drafts) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE",
        "return -(-max(1, max_drafts) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE",
        ("tests/unit/engine",),
    ),
    Mutation(
        "keeping logits takes time of the generation",
        "adadecode/engine/tally.py",
        "self._still_ns += clock_ns(self._device) - now",
        "self._still_ns += 0",
        ("tests/unit/engine/test_tally.py",),
    ),
    Mutation(
        "logits are those that the next round leaves",
        "adadecode/engine/tally.py",
        'logits.to("cpu", copy=True)',
        'logits.to("cpu")',
        ("tests/unit/engine/test_tally.py",),
    ),
    Mutation(
        "rows are checked at the first number of columns alone",
        "adadecode/engine/invariance.py",
        'if columns not in checked and not (checked and model.kernels == "native"):',
        "if not checked:",
        ("tests/unit/evaluation/test_failures.py", "tests/unit/test_library.py"),
    ),
    Mutation(
        "rows are checked in a step of more columns than a request has",
        "adadecode/engine/invariance.py",
        "step = model.new_step(width, min(num_positions, model.context_len))",
        "step = model.new_step(width, min(max(num_positions, prompt_len + 2 * width), model.context_len))",
        ("tests/unit/engine/test_parity.py",),
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
        "(tops[j] == best.top && ids[j] < best.id)",
        "(tops[j] == best.top && ids[j] > best.id)",
        KERNELS,
    ),
    Mutation(
        "native kernels forget a NaN",
        "adadecode/kernels/native.cpp",
        "tops[m] = best.any_nan ? NAN : best.top;",
        "tops[m] = best.top;",
        KERNELS,
    ),
    Mutation(
        "native attention sees one column less",
        "adadecode/kernels/native.cpp",
        "for (int c = num_seen[q]; c < stride; c++) row[c] = -INFINITY;",
        "for (int c = num_seen[q] - 1; c < stride; c++) row[c] = -INFINITY;",
        KERNELS,
    ),
    Mutation(
        "rows may stand one past the cache",
        "adadecode/kernels/native.py",
        "first_position <= first_position + num_rows <= self._num_positions:",
        "first_position <= first_position + num_rows <= self._num_positions + 1:",
        KERNELS,
    ),
    Mutation(
        "rows may stand one past a step's slots",
        "adadecode/kernels/step.py",
        "if not 0 <= lo <= hi <= width:",
        "if not 0 <= lo <= hi <= width + 1:",
        KERNELS,
    ),
    Mutation(
        "the scratch has room for one thread's scores",
        "adadecode/kernels/native.cpp",
        "end = scores + s.num_threads * scores_len;",
        "end = scores + scores_len;",
        ("tests/unit/kernels/test_scratch.py",),
    ),
    Mutation(
        "a library that was cut is loaded",
        "adadecode/kernels/library.py",
        "return hashlib.sha256(content[:-DIGEST_LEN]).digest() == content[-DIGEST_LEN:]",
        "return len(content) > DIGEST_LEN",
        ("tests/unit/kernels/test_library.py",),
    ),
    Mutation(
        "the step that was used last is let go of",
        "adadecode/kernels/shared.py",
        "self._buckets.pop(next(iter(self._buckets)))",
        "self._buckets.popitem()",
        ("tests/unit/kernels/test_shared.py",),
    ),
    Mutation(
        "a step's own cache is let go of to make it",
        "adadecode/kernels/shared.py",
        "(columns for columns in self._buckets if columns != needed)",
        "(columns for columns in self._buckets if columns)",
        ("tests/unit/kernels/test_shared.py",),
    ),
    # model
    Mutation(
        "a hub that gives no answer lacks the file",
        "adadecode/model/files.py",
        "is_known_to_lack = try_to_load_from_cache(self.source, file, revision=self.revision) is not None",
        "is_known_to_lack = try_to_load_from_cache(self.source, file, revision=self.revision) is None",
        ("tests/unit/model/test_model_places.py",),
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
    Mutation(
        "logits are compared as numbers",
        "adadecode/evaluation/compare.py",
        "torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))",
        "torch.equal(a, b)",
        ("tests/unit/evaluation/test_compare.py",),
    ),
    Mutation(
        "an output cut short at a near tie is one",
        "adadecode/evaluation/compare.py",
        "if cut_short or (first is None and",
        "if (first is None and",
        ("tests/unit/evaluation/test_compare.py",),
    ),
    Mutation(
        "memory that ran out outside of torch is a lost device",
        "adadecode/model/memory.py",
        '"out of memory", ',
        "",
        ("tests/unit/evaluation/test_failures.py",),
    ),
    Mutation(
        "a signal while a cell closes stops no sweep",
        "adadecode/evaluation/stop.py",
        "            return\n        self._on_signal()\n",
        "            return\n",
        ("tests/unit/evaluation/test_stop.py",),
    ),
    Mutation(
        "the grace period goes on while a run is closed",
        "adadecode/evaluation/stop.py",
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n        if self._watch is None:",
        "        if self._watch is None:",
        ("tests/unit/evaluation/test_stop.py",),
    ),
    # comparison
    Mutation(
        "a limit is passed by an estimate alone",
        "adadecode/comparison/gates.py",
        "elif estimate.high < limit:",
        "elif estimate.value < limit:",
        COMPARISON,
    ),
    Mutation(
        "a speed over vanilla is over vanilla of the other run",
        "adadecode/comparison/pairs.py",
        "        return found[0], found[1]",
        "        return found[1], found[0]",
        COMPARISON,
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
        "log_ratios = mean_by_prompt(prompts, np.log(base / method))",
        "log_ratios = np.log(base / method)",
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
        "nothing that is finished proves a place good",
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
        "patience = 2 ** min(self.num_deaths(item.name), self._limits.most_doublings)",
        "patience = 1",
        RAY,
    ),
    Mutation(
        "the deadline of an item is doubled for ever",
        "ray_jobs/scheduler.py",
        "patience = 2 ** min(self.num_deaths(item.name), self._limits.most_doublings)",
        "patience = 2 ** self.num_deaths(item.name)",
        BAD_PLACES,
    ),
    Mutation(
        "places that are gone do better than those that are left",
        "ray_jobs/places.py",
        "now - record.left_at < self._limits.away_s",
        "now - record.left_at < math.inf",
        BAD_PLACES,
    ),
    Mutation(
        "a place is forgotten when its actor is lost",
        "ray_jobs/places.py",
        "if place in here or now - record.left_at < self._limits.away_s",
        "if place in here",
        BAD_PLACES,
    ),
    Mutation(
        "a driver that stood still has heard nobody",
        "ray_jobs/watch.py",
        "self._silent_s += min(now - self._checked_at, STRIDE_S)",
        "self._silent_s += now - self._checked_at",
        ("tests/unit/ray_jobs/test_watch.py",),
    ),
    Mutation(
        "a cluster without nodes is lost though some can join",
        "ray_jobs/watch.py",
        "if self._nodes == [] and not self._can_grow:",
        "if self._nodes == []:",
        ("tests/unit/ray_jobs/test_watch.py",),
    ),
    Mutation(
        "a log that is read again is shown again",
        "ray_jobs/submit.py",
        "self.say(text[self.shown_len - self.read_len :])",
        "self.say(text)",
        ("tests/unit/ray_jobs/test_submit.py",),
    ),
    Mutation(
        "a log is read on from where it was shown",
        "ray_jobs/submit.py",
        "        self.read_len = 0\n        pieces = aiter",
        "        pieces = aiter",
        ("tests/unit/ray_jobs/test_submit.py",),
    ),
    Mutation(
        "a disk's blink ends a training",
        "ray_jobs/training.py",
        "LIMITS = Limits(max_deaths=3, max_errors=3,",
        "LIMITS = Limits(max_deaths=3, max_errors=1,",
        ("tests/unit/ray_jobs/test_training.py",),
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
