"""SUBSAMPLE-Q beside a general solver of Markov decision processes, which gets the dense kernel."""

import functools
from typing import Any

import numpy as np

from benchmarks.harness import NOT_RUN, Options, run_peer
from jaxsac import subsample_q
from jaxsac.problems import subsample_q as problems

RULES = {
    "value_iteration": "sup",
    "modified_policy_iteration": "span",
}  # quantecon's stopping rule of each method


def dense_kernel(kernel: np.ndarray, k: int) -> np.ndarray:
    """P(histogram h' | histogram h), [N, N], of k agents that each move by `kernel` [L, L]: one
    agent after the other.
    """
    num_states = kernel.shape[0]
    table, smaller = np.ones((1, 1)), np.zeros((1, num_states), np.int32)
    for agents in range(1, k + 1):
        space = subsample_q.HistogramSpace(agents, num_states)
        counts = np.asarray(space.table)
        first = np.argmax(counts > 0, axis=1)
        others = counts - np.eye(num_states, dtype=counts.dtype)[first]
        if agents == 1:
            before = np.zeros(len(counts), np.int32)
        else:
            before = subsample_q.HistogramSpace(agents - 1, num_states).index(others)
        rows, table = table[before], np.zeros((len(counts), len(counts)))
        for state in range(num_states):
            after = space.index(smaller + np.eye(num_states, dtype=counts.dtype)[state])
            table[:, after] += kernel[first, state][:, None] * rows
        smaller = counts
    return table


def model_of(problem: problems.GlobalLocal, options: Options) -> subsample_q.Model:
    arrays = {
        name: np.asarray(array, options.dtype)
        for name, array in problem._asdict().items()
        if name != "discount"
    }
    return subsample_q.Model(**arrays, discount=problem.discount)


def against_quantecon(options: Options) -> list[dict[str, Any]]:
    sizes = ((3, 3),) if options.smoke else ((4, 5), (4, 10), (5, 10))
    rows = []
    for L, k in options.progress(sizes, "quantecon"):
        model = model_of(problems.random(0, num_local=L), options)
        kernels = np.stack(
            [dense_kernel(np.asarray(P, np.float64), k) for P in model.local_transition]
        )
        G, A, N = model.num_global_states, model.num_actions, kernels.shape[-1]
        counts = subsample_q.HistogramSpace(k, L).table
        local = np.einsum("gl,nl->gn", np.asarray(model.local_reward), counts)[..., None] / k
        reward = np.asarray(model.global_reward)[:, None, :] + local
        transition = np.einsum(
            "gac,gnm->gnacm", np.asarray(model.global_transition), kernels
        ).reshape(G * N, A, G * N)
        eps = 1e-6 if model.dtype == np.float64 else 1e-3
        dense = {
            "reward": np.broadcast_to(reward, (G, N, A)).reshape(G * N, A).astype(float),
            "transition": transition.astype(float),
        }
        repeats = 1 if N > 500 or options.smoke else 3
        settings = {"discount": float(model.discount), "epsilon": eps, "repeats": repeats}
        peer = run_peer(
            "subsample_q/quantecon", dense, settings, python=options.peers_python, threads=2
        )
        jaxdp = run_peer("subsample_q/jaxdp", dense, settings, threads=2)  # wants a newer jax
        del transition, dense
        scale = float(model.max_reward()) / (1 - float(model.discount))
        for method, rule in RULES.items():
            thunks = {
                name: functools.partial(
                    subsample_q.solve, model, k, method=name, stopping=rule, tol=eps / 2 / scale
                )
                for name in ("anderson", "value_iteration")
            }
            times = options.time(thunks)
            ours = thunks["anderson"]().check()
            row = {"L": L, "k": k, "states": G * N, "stopping": rule}
            row |= {f"{name} s": timing.minimum for name, timing in times.items()}
            row["quantecon s"] = peer.numbers[method] if peer.ok else NOT_RUN
            row["ratio"] = peer.numbers[method] / times["anderson"].minimum if peer.ok else NOT_RUN
            row["jaxdp s"] = jaxdp.numbers[method] if jaxdp.ok and rule == "sup" else NOT_RUN
            difference = (
                peer.arrays[method] - np.asarray(ours.value.value).reshape(-1)
                if peer.ok
                else np.zeros(0)
            )
            row["difference"] = float(np.max(np.abs(difference))) if peer.ok else NOT_RUN
            rows.append(row)
    return rows
