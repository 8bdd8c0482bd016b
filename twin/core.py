"""The compiled simulator: one vLLM V1 engine, step by step, with O(1) amortised bookkeeping per step.

It does what a list-based scheduler does (tests hold it equal to one) without touching every request in every step:

- a decoding request grows by one token per step, so whether it needs a new KV block depends only on
  (tokens computed - step) modulo the block size: one counter per residue says how many blocks a step needs;
- the step in which a decoding request finishes is known when its prefill ends: finishes wait in a ring of buckets;
- budgets never clip decoding requests (``max_num_seqs <= max_num_batched_tokens``), so at most one request, the last
  admitted, is in the middle of its prefill, and the preemption victim is the tail of a linked list;
- a request's key in the waiting queue is its place in the stream (arrivals are in order), or a negative number once
  preempted; every adapter has a list of those who wait, and two tournament trees over the heads of the lists tell who
  goes first: of all adapters, and of those that run, for when the LoRA rule makes the scheduler skip everyone else; one
  list is enough if every adapter has a slot;
- adapters that do not run sit in two lists in order of last use: on the GPU, and in CPU memory only;
- an arrival that the client never sends costs a look at the clock: only those sent get a record, and give it back.

Rules: vLLM v1/core/sched/scheduler.py, v1/core/kv_cache_manager.py, lora/worker_manager.py of version 0.8.5; the rule
set ``vllm-0.32`` differs in the KV gate (all blocks of the whole prompt must be free at admission). With async
scheduling (v1/core/sched/async_scheduler.py; ``step_with_batch_queue`` in v1/engine/core.py) a step is scheduled when
the one before it starts: it sees who has arrived by then, and not yet who ends in the one before. Such a request takes
part in vain or, if its end was foreseen, is held back: it only keeps its place and its blocks.

All functions work on one ``State`` (twin/state.py). They stand in one file because Numba's cache on disk only notices
changes of the file whose function was called first.
"""

from __future__ import annotations

import math
from typing import Any

from numba import njit

from loraplan.profiles import EXPAND_TILE, GRAPH_TOKENS, LARGE_STEP_SPLIT, SHRINK_TILE, SMALL_TOKENS
from twin.state import (
    CHANGED,
    CPU,
    DISK,
    FEATURES,
    GPU,
    ITL_BIN_START,
    ITL_BIN_WIDTH,
    ITL_BINS,
    KV,
    NO_KEY,
    NONE,
    NOTHING,
    OUTPUT_SLICE,
    SEQS,
    SLOTS,
    TOKENS,
    WAITING,
)

PREFILL_TOKENS, ALL_TOKENS = FEATURES.index("prefill_tokens"), FEATURES.index("tokens")


def compiled(function: Any) -> Any:
    """Compile on first use and keep the result on disk.

    Nothing here allocates, so Numba's reference counting (``_nrt``) is off: it would take nine tenths of the time. All
    is inlined, as to pass every field of every array of the state takes longer than most functions do.
    """
    options: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False, "forceinline": True}
    return njit(**options)(function)


@compiled
def _ceil_div(a, b):  # type: ignore[no-untyped-def]
    return -(-a // b)


@compiled
def _enter(tree, q, key):  # type: ignore[no-untyped-def]
    """Set the key of queue ``q`` in a tournament tree (``NO_KEY`` takes it out) and play its matches again.

    A node holds the smaller key of the two below, and whose it is: key * leaves + queue.
    """
    leaves = tree.size >> 1
    i = leaves + q
    best = NO_KEY if key == NO_KEY else key * leaves + q
    while tree[i] != best:
        tree[i] = best
        if i == 1:
            return
        best = min(best, tree[i ^ 1])
        i >>= 1


@compiled
def _head_changed(s, q):  # type: ignore[no-untyped-def]
    first = s.adapters[q].first
    key = NO_KEY if first == NONE else s.sent[first].key
    _enter(s.tree_all, q, key)
    if s.tree_running.size > 0 and s.adapters[q].runs > 0:
        _enter(s.tree_running, q, key)


@compiled
def _queue_of(s, r):  # type: ignore[no-untyped-def]
    """One queue per adapter if they compete for slots, else one for all."""
    return s.sent[r].adapter if s.tree_running.size > 0 else 0


@compiled
def _count_waiting(s, a, more):  # type: ignore[no-untyped-def]
    """Count ``more`` waiting requests of adapter ``a``."""
    g = s.totals[0]
    before = s.adapters[a].waits
    s.adapters[a].waits = before + more
    if before == 0 or before + more == 0:
        g.waiting_set ^= s.marks[a] * WAITING
        g.waiting_adapters += more


@compiled
def _label(s):  # type: ignore[no-untyped-def]
    """Count the label of this moment, if it is new: which adapters run, and which have requests that wait."""
    g = s.totals[0]
    label = (g.running_set ^ g.waiting_set) | 1
    if s.labels.size == 0 or label == g.label:
        return
    g.label = label
    last = s.labels.size - 1
    i = label >> 1 & last
    while s.labels[i] != 0 and s.labels[i] != label:
        i = i + 1 & last
    if s.labels[i] == 0 and 2 * g.label_count < last:
        s.labels[i] = label
        g.label_count += 1
        g.label_names += g.active + g.waiting_adapters


@compiled
def _enqueue(s, r):  # type: ignore[no-untyped-def]
    """Put a new request behind everyone who waits."""
    q = _queue_of(s, r)
    last = s.adapters[q].last
    s.adapters[q].last = r
    if s.adapters[q].first == NONE:
        s.adapters[q].first = r
        _head_changed(s, q)
    else:
        s.sent[last].behind = r


@compiled
def _enqueue_front(s, r):  # type: ignore[no-untyped-def]
    """Put a preempted request before everyone who waits."""
    g = s.totals[0]
    q = _queue_of(s, r)
    _count_waiting(s, s.sent[r].adapter, 1)
    g.waiting += 1
    g.front_key -= 1
    s.sent[r].key = g.front_key
    s.sent[r].behind = s.adapters[q].first
    if s.adapters[q].first == NONE:
        s.adapters[q].last = r
    s.adapters[q].first = r
    _head_changed(s, q)


@compiled
def _dequeue(s, q):  # type: ignore[no-untyped-def]
    """Take the first waiting request of queue ``q``."""
    s.adapters[q].first = s.sent[s.adapters[q].first].behind
    s.totals[0].waiting -= 1
    _head_changed(s, q)


@compiled
def _unlink_lru(s, a):  # type: ignore[no-untyped-def]
    s.adapters[s.adapters[a].lru_prev].lru_next = s.adapters[a].lru_next
    s.adapters[s.adapters[a].lru_next].lru_prev = s.adapters[a].lru_prev


@compiled
def _link_lru(s, anchor, a):  # type: ignore[no-untyped-def]
    """Insert by (last use, index); new ones belong at or near the recent end, where the search starts."""
    at = s.adapters[anchor].lru_prev
    while at != anchor and (
        s.adapters[at].last_used > s.adapters[a].last_used
        or (s.adapters[at].last_used == s.adapters[a].last_used and at > a)
    ):
        at = s.adapters[at].lru_prev
    after = s.adapters[at].lru_next
    s.adapters[at].lru_next = a
    s.adapters[a].lru_prev = at
    s.adapters[a].lru_next = after
    s.adapters[after].lru_prev = a


@compiled
def _start_adapter(s, a, n_starting):  # type: ignore[no-untyped-def]
    """Count one more running request of ``a``; returns how many adapters start to run in this step, kept in order."""
    g = s.totals[0]
    s.adapters[a].runs += 1
    if s.adapters[a].runs > 1:
        return n_starting
    g.active += 1
    g.running_set ^= s.marks[a]
    if s.tree_running.size == 0:
        return n_starting
    _head_changed(s, a)
    i = n_starting
    while i > 0 and s.starting[i - 1] > a:
        s.starting[i] = s.starting[i - 1]
        i -= 1
    s.starting[i] = a
    return n_starting + 1


@compiled
def _stop_adapter(s, a, last_step):  # type: ignore[no-untyped-def]
    """Count one running request of ``a`` less; ``last_step`` is the last step that used it."""
    g = s.totals[0]
    s.adapters[a].runs -= 1
    if s.adapters[a].runs > 0:
        return
    g.active -= 1
    g.running_set ^= s.marks[a]
    if s.tree_running.size == 0:
        return
    _enter(s.tree_running, a, NO_KEY)
    s.adapters[a].last_used = last_step
    _link_lru(s, s.adapters.size - 2, a)


@compiled
def _load_adapters(s, setup, n_starting):  # type: ignore[no-untyped-def]
    """Load what this step's adapters lack into slots, evicting the least recently used; returns milliseconds.

    A step uses its adapters in order of index. One that is missing takes the slot of the adapter that was not used for
    longest, and without slots to spare that may be one whose turn in this step is still to come: that one is then
    loaded again in its turn, at the cost of the next, until an adapter goes that does not run.
    """
    g = s.totals[0]
    cost, scan, n_evicted, i, j = 0.0, 0, 0, 0, 0
    while i < n_starting or j < n_evicted:
        if j == n_evicted or (i < n_starting and s.starting[i] < s.evicted[j]):
            a = s.starting[i]
            i += 1
        else:
            a = s.evicted[j]
            j += 1
        if s.adapters[a].place != DISK:
            _unlink_lru(s, a)
        if s.adapters[a].place == GPU:
            continue
        cost += s.adapters[a].load_ms
        if g.on_gpu == setup.slots:
            scan, n_evicted = _evict(s, a, scan, n_evicted)
        else:
            g.on_gpu += 1
        if s.adapters[a].place == CPU:
            g.from_cpu += 1
        else:
            cost += s.adapters[a].disk_ms
            g.from_disk += 1
            if g.in_cpu == setup.cpu_slots:
                victim = s.adapters[s.adapters.size - 1].lru_next
                _unlink_lru(s, victim)
                s.adapters[victim].place = DISK
            else:
                g.in_cpu += 1
        s.adapters[a].place = GPU
    return cost


@compiled
def _evict(s, a, scan, n_evicted):  # type: ignore[no-untyped-def]
    """Free a slot for adapter ``a``, whose turn it is.

    Idle adapters and those that start in this step are in a list by last use; if none of them was last used before the
    last step, the victim is the first adapter of the last step that this one has not used yet.

    Returns (index from which victims of the last step are left, running adapters evicted in this step).
    """
    last_step = s.totals[0].step - 1
    victim = s.adapters[s.adapters.size - 2].lru_next
    if s.adapters[victim].last_used == last_step:
        victim = scan
        while s.adapters[victim].place != GPU or (s.adapters[victim].runs > 0 and victim < a):
            victim += 1
        scan = victim + 1
        if s.adapters[victim].last_used != last_step:
            s.adapters[victim].last_used = last_step
            s.evicted[n_evicted] = victim
            n_evicted += 1
        else:
            _unlink_lru(s, victim)
    else:
        _unlink_lru(s, victim)
    s.adapters[victim].place = CPU
    _link_lru(s, s.adapters.size - 1, victim)
    return scan, n_evicted


@compiled
def _run(s, r):  # type: ignore[no-untyped-def]
    g = s.totals[0]
    s.requests[r].older = g.tail
    s.requests[r].newer = NONE
    if g.tail != NONE:
        s.requests[g.tail].newer = r
    g.tail = r
    g.running += 1


@compiled
def _stop_running(s, r):  # type: ignore[no-untyped-def]
    g = s.totals[0]
    if s.requests[r].older != NONE:
        s.requests[s.requests[r].older].newer = s.requests[r].newer
    if s.requests[r].newer != NONE:
        s.requests[s.requests[r].newer].older = s.requests[r].older
    else:
        g.tail = s.requests[r].older
    g.running -= 1


@compiled
def _start_decoding(s, r, known):  # type: ignore[no-untyped-def]
    """Prefill of ``known`` tokens ended in this step, which produced a token; from the next step on one per step."""
    g = s.totals[0]
    step = g.step
    s.requests[r].offset = known - (step + 1)
    s.residue[s.requests[r].offset % s.residue.size] += 1
    g.decoding += 1
    slot = (step + s.sent[r].tokens_out - s.sent[r].produced) & (s.bucket.size - 1)
    after = s.bucket[slot]
    s.bucket[slot] = r
    s.requests[r].bucket_next = after
    s.requests[r].bucket_prev = NONE
    if after != NONE:
        s.requests[after].bucket_prev = r


@compiled
def _stop_decoding(s, r, computed):  # type: ignore[no-untyped-def]
    """Take ``r``, which holds ``computed`` tokens, out of the decoding requests and give its blocks back."""
    g = s.totals[0]
    s.residue[s.requests[r].offset % s.residue.size] -= 1
    g.decoding -= 1
    g.kv -= computed
    g.free += _ceil_div(computed, s.residue.size)


@compiled
def _give_back_record(s, r):  # type: ignore[no-untyped-def]
    s.sent[r].behind = s.totals[0].answered
    s.totals[0].answered = r


@compiled
def _end_foreseen(s, setup, r):  # type: ignore[no-untyped-def]
    """Whether ``r`` ends by its length, which async scheduling knows beforehand."""
    return s.sent[r].tokens_in + s.sent[r].tokens_out >= setup.foreseen_from


@compiled
def _hold_back(s, setup):  # type: ignore[no-untyped-def]
    """Async scheduling: of those who end in the step before, schedule only for whom that was not foreseen."""
    g = s.totals[0]
    r = s.bucket[(g.step - 1) & (s.bucket.size - 1)]
    while r != NONE:
        if _end_foreseen(s, setup, r):
            s.residue[s.requests[r].offset % s.residue.size] -= 1
            g.decoding -= 1
            g.kv -= s.requests[r].offset + g.step
            g.running -= 1
            g.held_back += 1
            _stop_adapter(s, s.sent[r].adapter, g.step - 1)
        else:
            g.in_vain += 1
        r = s.requests[r].bucket_next


@compiled
def _end_held_back(s, r):  # type: ignore[no-untyped-def]
    g = s.totals[0]
    s.finish[s.sent[r].place] = g.now
    g.free += _ceil_div(s.requests[r].offset + g.step, s.residue.size)
    g.held_back -= 1
    g.running += 1
    _stop_running(s, r)
    _give_back_record(s, r)


@compiled
def _end_previous(s, setup):  # type: ignore[no-untyped-def]
    """Async scheduling: the step before has ended by now, and those leave who ended in it."""
    g = s.totals[0]
    slot = (g.step - 1) & (s.bucket.size - 1)
    r = s.bucket[slot]
    s.bucket[slot] = NONE
    while r != NONE:
        after = s.requests[r].bucket_next
        if _end_foreseen(s, setup, r):
            _end_held_back(s, r)
        else:
            _stop_decoding(s, r, s.requests[r].offset + g.step + 1)
            _finish(s, r, g.now, True)
        r = after
    g.in_vain = 0


@compiled
def _leave_bucket(s, r, slot):  # type: ignore[no-untyped-def]
    if s.requests[r].bucket_prev == NONE:
        s.bucket[slot] = s.requests[r].bucket_next
    else:
        s.requests[s.requests[r].bucket_prev].bucket_next = s.requests[r].bucket_next
    if s.requests[r].bucket_next != NONE:
        s.requests[s.requests[r].bucket_next].bucket_prev = s.requests[r].bucket_prev


@compiled
def _preempt_tail(s, setup):  # type: ignore[no-untyped-def]
    """Send the last admitted request back to the front of the queue; returns by how much fewer blocks are needed.

    With async scheduling its last token may be on its way: then it ends with the step before, and never waits.
    """
    g = s.totals[0]
    r = g.tail
    step, block = g.step, s.residue.size
    s.preempted[s.sent[r].place] += 1
    g.preemptions += 1
    relief, ends = 0, False
    if r == g.partial:
        g.free += _ceil_div(g.partial_done, block)
        g.kv -= g.partial_done
        g.partial = NONE
    else:
        computed = s.requests[r].offset + step
        missing = s.sent[r].tokens_in + s.sent[r].tokens_out - 1 - computed
        _leave_bucket(s, r, (step - 1 + missing) & (s.bucket.size - 1))
        ends = missing == 0
        if ends and _end_foreseen(s, setup, r):
            _end_held_back(s, r)
            return 0
        relief = 1 if computed % block == 0 else 0
        _stop_decoding(s, r, computed)
        s.sent[r].produced = computed + 1 - s.sent[r].tokens_in
        s.requests[r].last_token = g.now
    _stop_running(s, r)
    _stop_adapter(s, s.sent[r].adapter, step - 1)
    if ends:
        s.finish[s.sent[r].place] = g.now
        g.in_vain -= 1
        _give_back_record(s, r)
    else:
        _enqueue_front(s, r)
    return relief


@compiled
def _grow_running(s, setup):  # type: ignore[no-untyped-def]
    """Schedule the running: one token each, and the rest of the prompt of the one in prefill.

    Requests are served in order of admission and short of blocks the last one is preempted until the one at hand fits;
    so the outcome is that tails go until what the others need is free.

    Returns (tokens of the prefill chunk, whether someone was preempted).
    """
    g = s.totals[0]
    block = setup.block
    need = s.residue[-g.step % block]
    chunk, chunk_need = 0, 0
    if g.partial != NONE:
        r, done = g.partial, g.partial_done
        chunk = min(s.sent[r].tokens_in + s.sent[r].produced - done, setup.max_tokens - g.decoding)
        chunk_need = _ceil_div(done + chunk, block) - _ceil_div(done, block)
    before = g.preemptions
    while need + chunk_need > g.free:
        need -= _preempt_tail(s, setup)
        if g.partial == NONE:
            chunk, chunk_need = 0, 0
    g.free -= need + chunk_need
    return chunk, g.preemptions > before


@compiled
def _admit(s, setup, budget, n_joined):  # type: ignore[no-untyped-def]
    """Schedule the waiting, first come first served, as far as budgets, slots and KV blocks allow.

    Returns (prefill tokens, prefills that end in this step, adapters that start to run, whether the KV gate closed).
    """
    g = s.totals[0]
    prefill, n_starting = 0, 0
    while g.waiting > 0 and prefill < budget and g.running + g.held_back < setup.max_seqs:
        full = g.active == setup.slots and s.tree_running.size > 0
        best = s.tree_running[1] if full else s.tree_all[1]
        if best == NO_KEY:
            break
        q = best & ((s.tree_all.size >> 1) - 1)
        r = s.adapters[q].first
        known = s.sent[r].tokens_in + s.sent[r].produced
        new = min(known, budget - prefill)
        if _ceil_div(known if setup.whole_prompt else new, setup.block) > g.free:
            return prefill, n_joined, n_starting, True
        _dequeue(s, q)
        _count_waiting(s, s.sent[r].adapter, -1)
        _run(s, r)
        n_starting = _start_adapter(s, s.sent[r].adapter, n_starting)
        g.free -= _ceil_div(new, setup.block)
        prefill += new
        if new == known:
            s.joined[n_joined] = r
            n_joined += 1
        else:
            g.partial = r
            g.partial_done = new
    return prefill, n_joined, n_starting, False


@compiled
def _gap_bin(seconds):  # type: ignore[no-untyped-def]
    place = int((math.log(max(seconds * 1e3, 1e-9)) - ITL_BIN_START) * (1.0 / ITL_BIN_WIDTH))
    return min(max(place, 0), ITL_BINS - 1)


@compiled
def _account(s, seconds, kv_token_s, reason):  # type: ignore[no-untyped-def]
    """Add ``seconds`` in which nobody came or went to the integrals over time, and to what kept those who wait."""
    g = s.totals[0]
    g.busy_s += seconds
    g.running_s += seconds * g.running
    g.waiting_s += seconds * g.waiting
    g.kv_token_s += kv_token_s
    g.adapter_s += seconds * g.active
    g.max_kv = max(g.max_kv, g.kv)
    g.max_waiting = max(g.max_waiting, g.waiting)
    if g.waiting > 0:
        s.blocked_s[reason] += seconds


@compiled
def _count(s, steps, kv, prefill, load_ms):  # type: ignore[no-untyped-def]
    """Add ``steps`` alike to the feature sums (see FEATURES), per step and per token that a decoding request got."""
    g = s.totals[0]
    tokens = g.decoding + prefill
    small = tokens <= SMALL_TOKENS
    for row in range(2):
        weight = 1.0 if row == 0 else float(g.decoding - g.in_vain)
        sums = s.features[row]
        sums[0] += weight * steps
        sums[1] += weight * steps * g.running
        sums[2] += weight * kv
        sums[3] += 0.0 if small else weight * steps * g.active
        sums[4] += weight * steps * g.active if small else 0.0
        sums[5] += weight * prefill
        sums[6] += weight * steps * _shrink_tiles(tokens)
        sums[7] += weight * steps * _ceil_div(tokens, EXPAND_TILE)
        sums[8] += weight * steps if tokens > GRAPH_TOKENS else 0.0
        sums[9] += weight * steps * g.active * g.running
        sums[10] += weight * steps * g.waiting
        sums[11] += weight * load_ms
        sums[12] += weight * (steps * g.decoding + prefill)


@compiled
def _mark(s, setup, until, steps, running, waiting, kv, active, busy):  # type: ignore[no-untyped-def]
    """Write down the totals at the end of every interval up to ``until``, before which the rates given held."""
    g = s.totals[0]
    while g.marked < s.series.shape[0] and g.mark <= until:
        ahead = until - g.mark
        row = s.series[g.marked]
        row[0] = g.running_s - ahead * running
        row[1] = g.waiting_s - ahead * waiting
        row[2] = g.kv_token_s - ahead * kv
        row[3] = g.adapter_s - ahead * active
        row[4] = g.busy_s - ahead * busy
        row[5] = steps
        row[6] = s.features[0, PREFILL_TOKENS]
        row[7] = s.features[0, ALL_TOKENS]
        row[8] = g.from_cpu + g.from_disk
        g.marked += 1
        g.mark = (g.marked + 1) * setup.series_s


@compiled
def _watch_from(s, setup, now):  # type: ignore[no-untyped-def]
    """Say until when there is nothing to write down."""
    g = s.totals[0]
    g.watch = g.mark if g.marked < s.series.shape[0] else math.inf
    if now < setup.log_to:
        g.watch = min(g.watch, setup.log_from)


@compiled
def _record_step(s, setup, end, milliseconds, prefill, loads):  # type: ignore[no-untyped-def]
    """Write down what this step is, and the intervals that end in it; a step counts where it starts."""
    g = s.totals[0]
    _mark(s, setup, min(end, setup.horizon), g.step + 1, g.running, g.waiting, g.kv, g.active, 1)
    if setup.log_from <= g.now < setup.log_to:
        if g.logged < s.log.shape[0]:
            row = s.log[g.logged]
            row[0] = g.now
            row[1] = milliseconds
            row[2] = g.running
            row[3] = g.waiting
            row[4] = g.active
            row[5] = prefill
            row[6] = g.decoding
            row[7] = loads
            row[8] = g.kv
        g.logged += 1
    _watch_from(s, setup, end)


@compiled
def _skip_idle_time(s, setup, until):  # type: ignore[no-untyped-def]
    g = s.totals[0]
    if until >= g.watch:
        _mark(s, setup, until, g.step, 0, 0, 0, 0, 0)
        _watch_from(s, setup, until)
    g.now = until


@compiled
def _finish(s, r, end, seen):  # type: ignore[no-untyped-def]
    g = s.totals[0]
    if seen:
        s.finish[s.sent[r].place] = end
    _stop_running(s, r)
    _stop_adapter(s, s.sent[r].adapter, g.step)
    _give_back_record(s, r)


@compiled
def _advance(s, setup, overlap, end, duration, n_joined):  # type: ignore[no-untyped-def]
    """Let the step end: tokens come out, requests finish and leave, prefilled ones start to decode."""
    g = s.totals[0]
    step = g.step
    seen = end <= setup.horizon
    if seen and g.decoding > g.in_vain:
        s.itl[_gap_bin(duration)] += g.decoding - g.in_vain
    if overlap:
        _end_previous(s, setup)
    else:
        slot = step & (s.bucket.size - 1)
        r = s.bucket[slot]
        s.bucket[slot] = NONE
        while r != NONE:
            after = s.requests[r].bucket_next
            _stop_decoding(s, r, s.requests[r].offset + step + 1)
            _finish(s, r, end, seen)
            r = after
    for i in range(n_joined):
        r = s.joined[i]
        known = s.sent[r].tokens_in + s.sent[r].produced
        if seen and s.sent[r].produced == 0:
            s.first_token[s.sent[r].place] = end
            if g.pause_from <= end < g.pause_to:
                g.delay_s += g.pause_to - end
        elif seen:
            s.itl[_gap_bin(end - s.requests[r].last_token)] += 1.0
        s.sent[r].produced += 1
        if s.sent[r].produced == s.sent[r].tokens_out and not overlap:
            g.free += _ceil_div(known, setup.block)
            g.kv -= known
            _finish(s, r, end, seen)
        else:
            _start_decoding(s, r, known)


@compiled
def _step(s, setup, overlap):  # type: ignore[no-untyped-def]
    """Schedule and execute one step.

    Returns what ended its admissions if it was a step that could go on like this, CHANGED if it was not, and NOTHING if
    there was nothing to do.
    """
    g = s.totals[0]
    if overlap:
        _hold_back(s, setup)
    chunk, preempted = _grow_running(s, setup)
    n_joined = 0
    decoding = g.decoding
    if g.partial != NONE:
        g.partial_done += chunk
        r = g.partial
        if g.partial_done == s.sent[r].tokens_in + s.sent[r].produced:
            s.joined[0] = r
            n_joined = 1
            g.partial = NONE
    admitted, n_starting, gate = 0, 0, preempted
    if not preempted:
        admitted, n_joined, n_starting, gate = _admit(s, setup, setup.max_tokens - decoding - chunk, n_joined)
    prefill = chunk + admitted
    tokens = decoding + prefill
    if tokens == 0:
        if overlap:
            _end_previous(s, setup)
        return NOTHING
    g.kv += tokens
    loads = g.from_cpu + g.from_disk
    load_ms = _load_adapters(s, setup, n_starting)
    milliseconds = _steady_ms(s, setup, tokens) + setup.per_kv * g.kv + setup.per_prefill * prefill + load_ms
    duration = milliseconds * 1e-3
    end = g.now + duration
    seconds = min(end, setup.horizon) - g.now
    reason = _reason(s, setup, tokens, gate)
    _account(s, seconds, seconds * g.kv, reason)
    _count(s, 1, g.kv, prefill, load_ms)
    if end >= g.watch:
        _record_step(s, setup, end, milliseconds, prefill, g.from_cpu + g.from_disk - loads)
    _emit(s, g.now, end, 1)
    running = g.running + g.held_back
    _advance(s, setup, overlap, end, duration, n_joined)
    g.seen = g.now if overlap else end
    g.now = end
    g.step += 1
    return reason if prefill == 0 and not preempted and g.running == running else CHANGED


@compiled
def _shrink_tiles(tokens):  # type: ignore[no-untyped-def]
    """Thread blocks of the LoRA shrink kernel per slot, in units of those of a small step's first tile."""
    tiles = float(_ceil_div(tokens, SHRINK_TILE))
    return tiles if tokens <= SMALL_TOKENS else tiles * LARGE_STEP_SPLIT


@compiled
def _steady_ms(s, setup, tokens):  # type: ignore[no-untyped-def]
    """The part of the step time that depends on nothing but who runs, how many tokens they get, and how many wait."""
    g = s.totals[0]
    return (
        setup.step_base
        + setup.per_request * g.running
        + (setup.per_small_adapter if tokens <= SMALL_TOKENS else setup.per_adapter) * g.active
        + setup.per_adapter_request * g.active * g.running
        + setup.per_shrink_tile * _shrink_tiles(tokens)
        + setup.per_expand_tile * _ceil_div(tokens, EXPAND_TILE)
        + (setup.eager if tokens > GRAPH_TOKENS else 0.0)
        + setup.per_waiting * g.waiting
    )


@compiled
def _reason(s, setup, tokens, gate):  # type: ignore[no-untyped-def]
    """What ended this step's admissions, if requests were left."""
    if gate:
        return KV
    if tokens == setup.max_tokens:
        return TOKENS
    return SEQS if s.totals[0].running + s.totals[0].held_back == setup.max_seqs else SLOTS


@compiled
def _coast(s, setup, overlap, reason):  # type: ignore[no-untyped-def]
    """Repeat a step in which nobody came or went until someone arrives, finishes or needs a block that is not free.

    Whoever waits was refused in the step before and would be refused again: nothing is freed here.
    """
    g = s.totals[0]
    until = min(_next_arrival(s), g.pause_from if g.seen < g.pause_from else g.pause_to)
    steady_ms = _steady_ms(s, setup, g.decoding)
    now, seen, kv, free, step, decoding = g.now, g.seen, g.kv, g.free, g.step, g.decoding
    last_slot, phase = s.bucket.size - 1, -step % setup.block
    limit = min(setup.horizon, g.watch)
    known = 1 if overlap else 0  # how many steps ago one must have ended in to be known to end
    kv_sum, kv_token_s, low, high, place = 0.0, 0.0, 0.0, 0.0, 0
    while until > seen and s.bucket[(step - known) & last_slot] == NONE:
        need = s.residue[phase]
        duration = 1e-3 * (steady_ms + setup.per_kv * (kv + decoding))
        if need > free or now + duration >= limit:
            break
        free -= need
        kv += decoding
        kv_sum += kv
        kv_token_s += duration * kv
        if not low <= duration < high:
            place = _gap_bin(duration)
            low = 1e-3 * math.exp(ITL_BIN_START + place * ITL_BIN_WIDTH)
            high = 1e-3 * math.exp(ITL_BIN_START + (place + 1) * ITL_BIN_WIDTH)
        s.itl[place] += decoding
        seen = now if overlap else now + duration
        now += duration
        step += 1
        phase = phase - 1 if phase > 0 else setup.block - 1
    steps, seconds = step - g.step, now - g.now
    if steps > 0:
        _emit(s, g.now, now, steps)
    g.now, g.seen, g.kv, g.free, g.step = now, seen, kv, free, step
    if steps > 0:
        _account(s, seconds, kv_token_s, reason)
        _count(s, steps, kv_sum, 0, 0.0)


@compiled
def _send(s, i):  # type: ignore[no-untyped-def]
    """Let the client send arrival ``i``, in the record of a request that is answered if there is one."""
    g = s.totals[0]
    r = g.answered
    if r == NONE:
        r = g.records
        g.records += 1
    else:
        g.answered = s.sent[r].behind
    g.sent += 1
    g.waiting += 1
    request = s.sent[r]
    request.place = request.key = i
    request.adapter = s.turns[s.adapter[i]]
    request.tokens_in = s.tokens_in[i]
    request.tokens_out = s.tokens_out[i]
    request.produced = 0
    request.behind = NONE
    _count_waiting(s, request.adapter, 1)
    _enqueue(s, r)


@compiled
def _pause(s, setup):  # type: ignore[no-untyped-def]
    """Look for the frontend's pause that is next or lasts.

    It loads a tokenizer for the first request of an adapter, and writes down all labels every ``scrape`` seconds.
    """
    g = s.totals[0]
    while g.seen >= g.pause_to:
        free = g.pause_to
        if g.stopped < s.stops.shape[0] and s.stops[g.stopped, 0] <= max(free, g.scrape_at):
            g.pause_from = max(free, s.stops[g.stopped, 0])
            g.pause_to = max(free, s.stops[g.stopped, 1])
            g.stopped += 1
        else:
            g.pause_from = max(free, g.scrape_at)
            g.pause_to = g.pause_from + setup.per_series * g.label_count + setup.per_name * g.label_names
            g.scrape_at = g.pause_to + setup.scrape
        g.emitted = 0


@compiled
def _emit(s, started, end, steps):  # type: ignore[no-untyped-def]
    """Count the gaps between tokens that the frontend's pause hides, of ``steps`` alike from ``started`` to ``end``.

    All but the last ended before the pause began or ended, whichever comes first after the start. What was produced
    in a pause is then handed on in one go, unless a step has so many outputs that the frontend takes a breath.
    """
    g = s.totals[0]
    if g.decoding > OUTPUT_SLICE:
        return
    in_pause = steps - 1 if started >= g.pause_from else 0
    if g.pause_from <= end < g.pause_to:
        in_pause += 1
    if in_pause > 0:
        g.merged += g.decoding * (in_pause - 1 + g.emitted)
        g.emitted = 1


@compiled
def _next_arrival(s):  # type: ignore[no-untyped-def]
    """When the next arrival reaches the engine: those that come in a pause do at its end."""
    g = s.totals[0]
    if g.arrived == s.arrival.size:
        return math.inf
    arrival = s.arrival[g.arrived]
    return g.pause_to if g.pause_from <= arrival < g.pause_to else arrival


@compiled
def _take_in_arrivals(s, setup):  # type: ignore[no-untyped-def]
    """Let those who have arrived by now wait; those who find too many unanswered before them are lost."""
    g = s.totals[0]
    now, i = min(g.seen, g.pause_from), g.arrived
    while i < s.arrival.size and s.arrival[i] <= now:
        if g.waiting + g.running + g.held_back < setup.max_outstanding:
            _send(s, i)
        i += 1
    g.arrived = i


@compiled
def _run_until_horizon(s, setup, overlap):  # type: ignore[no-untyped-def]
    """Simulate from time 0 to the horizon (s): arrivals, one step, and so on; idle time is skipped."""
    g = s.totals[0]
    while g.now < setup.horizon:
        _pause(s, setup)
        _take_in_arrivals(s, setup)
        _label(s)
        outcome = _step(s, setup, overlap)
        if outcome >= 0:
            _coast(s, setup, overlap, outcome)
        elif outcome == NOTHING:
            if g.seen == g.now:
                if g.arrived == s.arrival.size:
                    break
                _skip_idle_time(s, setup, _next_arrival(s))
            g.seen = g.now
    if overlap and g.now == setup.horizon:
        _hold_back(s, setup)
        _end_previous(s, setup)
    _mark(s, setup, g.mark + s.series.shape[0] * setup.series_s, g.step, 0, 0, 0, 0, 0)


@compiled
def run(s, setup):  # type: ignore[no-untyped-def]
    """Simulate with the rules of a scheduler that waits for every step to end."""
    _run_until_horizon(s, setup, False)


@compiled
def run_overlapped(s, setup):  # type: ignore[no-untyped-def]
    """Simulate with async scheduling; compiled apart, so that neither costs the other time."""
    _run_until_horizon(s, setup, True)
