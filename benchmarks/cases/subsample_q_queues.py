"""SUBSAMPLE-Q: dispatch to queues, planned for k of them and executed on many."""

from typing import Any

import numpy as np

from benchmarks.harness import Options
from jaxsac import subsample_q
from jaxsac.problems import subsample_q as problems

LOAD, SERVICE, CAPACITY = 0.9, 0.5, 4


def queueing(options: Options) -> list[dict[str, Any]]:
    """Each k solved through the API, its distance from joining the shortest queues, and what it
    does to many queues, beside the power of k choices.
    """
    sizes, n, steps = ((1, 2), 12, 40) if options.smoke else ((1, 2, 3, 4, 5), 3_000, 600)
    rows = []
    for k in options.progress(sizes, "queueing"):
        problem = problems.dispatch(k, CAPACITY, LOAD, SERVICE)
        fields = problem._asdict()
        arrays = {key: np.asarray(fields.pop(key), options.dtype) for key in list(fields)[:4]}
        table = subsample_q.solve(subsample_q.LocalActionModel(**arrays, **fields), k).check().value
        jobs, lost = zip(*(executed(table, n, steps, seed) for seed in range(3)), strict=True)
        each = {"load": LOAD, "service": SERVICE, "steps": steps, "capacity": CAPACITY}
        power = np.mean([problems.power_of_k(seed, k, n, **each) for seed in range(3)], axis=0)
        rows.append(
            {
                "k": k,
                "shortest queues lose": shortest_loses(table),
                "queues": n,
                "mean jobs": float(np.mean(jobs)),
                "± error": float(np.std(jobs, ddof=1) / 3**0.5),
                "lost": float(np.mean(lost)),
                "power of k": float(power[0]),
                "lost by it": float(power[1]),
            }
        )
    return rows


def shortest_loses(table: Any) -> float:
    """The most that V − Q(join the shortest queues) is, over jobs and histograms."""
    pairs = {z.tobytes(): m for m, z in enumerate(np.asarray(table.assignments))}
    lost, value, q = [], np.asarray(table.value), np.asarray(table.q)
    for row, counts in enumerate(np.asarray(table.histograms)):
        before = np.cumsum(counts) - counts  # queues that are shorter
        for jobs in range(len(value)):
            joined = np.clip(jobs - before, 0, counts)
            z = np.stack([counts - joined, joined], axis=1).astype(np.int32)
            lost.append(value[jobs, row] - q[jobs, pairs[z.tobytes()], 0])
    return float(max(lost))


def executed(table: Any, num_queues: int, steps: int, seed: int) -> tuple[float, float]:
    """Mean jobs of a queue after arrivals and the part of the jobs that is lost, over the second
    half of `steps`, where the queues are put into groups of k afresh at each step, and each group
    follows the table.
    """
    generator, (k,) = np.random.default_rng(seed), table.meaning.ks
    space, assignment = subsample_q.HistogramSpace(k, CAPACITY + 1), np.asarray(table.assignment)
    queues, total, lost, arrived = np.zeros(num_queues, np.int64), 0.0, 0, 0
    earlier = np.tri(k, k=-1, dtype=bool)
    for step in range(steps):
        queues = generator.permutation(queues).reshape(-1, k)
        counts = np.sum(queues[:, :, None] == np.arange(CAPACITY + 1), axis=1)
        rows = np.asarray(space.index(counts.astype(np.int32)))
        jobs = generator.binomial(k, LOAD * SERVICE, len(queues))
        tagged = assignment[jobs, rows, :, 1]  # of each length
        rank = np.sum(earlier & (queues[:, :, None] == queues[:, None, :]), axis=2)
        joins = rank < np.take_along_axis(tagged, queues, axis=1)
        over = int(np.sum(joins & (queues == CAPACITY)))
        queues = np.minimum(queues + joins, CAPACITY).reshape(-1)
        if step >= steps // 2:
            total, lost, arrived = total + queues.mean(), lost + over, arrived + int(jobs.sum())
        queues = queues - ((queues > 0) & (generator.random(num_queues) < SERVICE))
    return total / (steps - steps // 2), lost / arrived
