"""Hit ratios of the store beside those of libCacheSim, as the tables of perf/README.md.

    compare.py PROGRAM [TRACE...]     PROGRAM is the bench hit_ratio; by default all its traces

Fails when a policy is more than BOUND points from the reference's, when neither SIEVE nor S3-FIFO is
ahead of LRU, or when anything is above Belady, which would mean that the two sides count differently.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import libcachesim

BOUND = 0.5
# What each policy's paper says, even where it is the default there: LFU among equals evicts the
# one whose last use is longest ago, CLOCK has one bit, S3-FIFO a small queue of a tenth and a ghost
# as long as the main queue, and moves to the main queue what was used more than once.
REFERENCES = {
    "sieve": (libcachesim.Sieve, {}),
    "s3fifo": (
        libcachesim.S3FIFO,
        {"small_size_ratio": 0.1, "ghost_size_ratio": 0.9, "move_to_main_threshold": 2},
    ),
    "lru": (libcachesim.LRU, {}),
    "lfu": (libcachesim.LFU, {}),
    "clock": (libcachesim.Clock, {"init_freq": 0, "n_bit_counter": 1}),
}
BELADY = (libcachesim.Belady, {})
# Buckets of its tables, as a power of two.
HASH_POWER = 18
RECORD_BYTES = 24


def ours(program, trace, file):
    """Writes the trace; the store's hits by policy, items and cores."""
    output = subprocess.run([program, trace, file], check=True, capture_output=True, text=True).stdout
    hits = {}
    for line in output.splitlines():
        policy, items, cores, count = line.split()
        hits[policy, int(items), int(cores)] = int(count)
    return hits


def reference_percent(file, policy, items):
    """The hit ratio of libCacheSim with room for so many objects of size 1."""
    make, parameters = policy
    reader = libcachesim.TraceReader(str(file), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    cache = make(cache_size=items, hashpower=HASH_POWER, **parameters)
    miss_ratio, _ = cache.process_trace(reader)
    return 100 * (1 - miss_ratio)


def points(difference):
    """Two places, and never a minus before nothing."""
    return round(difference, 2) + 0.0


def row(*cells):
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def main(program, *traces):
    if traces == ("list",):
        return subprocess.run([program, "list"]).returncode
    if not traces:
        traces = subprocess.run([program, "list"], check=True, capture_output=True, text=True).stdout.split()
    failures = []
    losses = []
    row("trace", "items", "Belady", *REFERENCES)
    row(*["---"] * (3 + len(REFERENCES)))
    for trace in traces:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace"
            hits = ours(program, trace, file)
            requests = file.stat().st_size // RECORD_BYTES
            percent = {case: 100 * count / requests for case, count in hits.items()}
            for items in sorted({items for _, items, _ in hits}):
                belady = reference_percent(file, BELADY, items)
                cells = []
                for policy, reference in REFERENCES.items():
                    figure = percent[policy, items, 1]
                    difference = figure - reference_percent(file, reference, items)
                    cell = f"{figure:.2f} ({points(difference):+.2f})"
                    if abs(difference) > BOUND:
                        cell = f"**{cell}**"
                        failures.append(f"{policy}, {trace}, {items} items: {difference:+.2f} points")
                    if figure > belady:
                        failures.append(f"{policy}, {trace}, {items} items: above Belady")
                    cells.append(cell)
                newer = max(percent["sieve", items, 1], percent["s3fifo", items, 1])
                if newer <= percent["lru", items, 1]:
                    failures.append(f"{trace}, {items} items: LRU is ahead")
                row(trace, items, f"{belady:.2f}", *cells)
        losses.append((trace, percent))

    print()
    shared = sorted({cores for _, percent in losses for _, _, cores in percent if cores > 1})
    policies = list(REFERENCES)
    row("policy", "items", *(f"{cores} cores: mean, most" for cores in shared))
    row(*["---"] * (2 + len(shared)))
    for policy in policies:
        for items in sorted({items for _, percent in losses for _, items, _ in percent}):
            cells = []
            for cores in shared:
                lost = [
                    percent[policy, items, 1] - percent[policy, items, cores]
                    for _, percent in losses
                    if (policy, items, cores) in percent
                ]
                cells.append(f"{points(sum(lost) / len(lost)):.2f}, {points(max(lost)):.2f}")
            row(policy, items, *cells)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
