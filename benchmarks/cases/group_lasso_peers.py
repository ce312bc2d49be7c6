"""The judge of everybody's answer, and the peers of the group lasso at their best settings."""

import concurrent.futures
from typing import NamedTuple

import numpy as np

from benchmarks.cases.group_lasso_cases import LONG_PATH_TOLS, Case
from benchmarks.harness import Options, run_peer

TARGET = {"float64": 1e-6, "float32": 1e-4}


def relative_gap(
    loss: str, X: np.ndarray, y: np.ndarray, lam: float, coef: np.ndarray, group_size: int
) -> float:
    """The duality gap over the null objective in float64 numpy: the one judge of everybody's
    answer.
    """
    z = (X @ coef.reshape(X.shape[1], -1)).reshape(y.shape)
    if loss == "squared":
        slope, value, null = y - z, 0.5 * np.sum((y - z) ** 2) / len(y), 0.5 * np.sum(y**2) / len(y)
    else:
        slope, value, null = y / (1 + np.exp(y * z)), np.mean(np.logaddexp(0, -y * z)), np.log(2)
    norms = np.linalg.norm(coef.reshape(-1, group_size), axis=1)
    limit = lam / np.linalg.norm((X.T @ slope / len(y)).reshape(-1, group_size), axis=1).max()
    if loss == "squared":
        scale = np.clip(np.sum(slope * y) / np.sum(slope**2), -limit, limit)
        dual = np.sum(scale * slope * y - 0.5 * scale**2 * slope**2) / len(y)
    else:
        share = np.clip(min(1.0, limit) * slope * y, 1e-300, 1 - 1e-16)
        dual = np.mean(-share * np.log(share) - (1 - share) * np.log1p(-share))
    return float((value + lam * norms.sum() - dual) / null)


def worst_gap(case: Case, coefs: np.ndarray) -> float:
    """The largest relative gap over problems and lambdas; coefs [N, L, p]."""
    return max(
        relative_gap(case.loss, X, y, lam, np.asarray(coef, np.float64), case.group_size)
        for X, y, lams, rows in zip(case.X, case.y, case.lams, coefs, strict=True)
        for lam, coef in zip(lams, rows, strict=True)
    )


class Answer(NamedTuple):
    """A peer at one setting: how it is called, the worst gap that it left, and its seconds."""

    name: str
    setting: tuple[float, int]
    gap: float
    seconds: list[float]


def ask(
    peer: str, case: Case, options: Options, tols: tuple[float, ...], threads: int
) -> list[Answer] | str:
    """The peer's answers at several tolerances, or why there are none."""
    settings = {
        "group_size": case.group_size,
        "loss": case.loss,
        "tols": tols,
        "min_repeats": 2 if case.lams.shape[1] > 50 else 5,
        "min_seconds": 0.05 if options.smoke else 1.0,
        "threads": threads,
    }
    # Many problems share the cores as processes of one thread each.
    processes = threads if len(case.X) > 1 else 1
    shares = np.array_split(np.arange(len(case.X)), processes)

    def one_share(of: np.ndarray):
        arrays = {"X": case.X[of], "y": case.y[of], "lams": case.lams[of]}
        own = {"threads": threads // processes}
        python = options.peers_python
        return run_peer(
            f"group_lasso/{peer}",
            arrays,
            settings | own,
            python=python,
            threads=threads // processes,
            timeout=900,
        )

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(one_share, shares))
    for answer in found:
        if not answer.ok:
            return answer.status
    tail = (-1, case.lams.shape[1], case.num_coefficients)
    coefs = [
        np.concatenate([answer.arrays["coef"][k].reshape(tail) for answer in found])
        for k in range(len(tols))
    ]
    # They started together; the last to end ends the work.
    calls = zip(*(answer.numbers["seconds"] for answer in found), strict=True)
    times = [
        np.max([sorted(each)[: min(map(len, several))] for each in several], axis=0)
        for several in calls
    ]
    how = f"{processes} processes" if processes > 1 else f"{threads} threads"
    return [
        Answer(f"{peer}, tol {tol:g}, {how}", (tol, threads), worst_gap(case, coef), list(seconds))
        for tol, coef, seconds in zip(tols, coefs, times, strict=True)
    ]


def best_of(peer: str, case: Case, options: Options) -> dict[str, Answer | str]:
    """The fastest setting that meets the target, or else the one with the least gap; on long paths
    also the fastest at ten times the target.
    """
    answers: list[Answer] = []
    # Of several problems each core takes a share; on one the others' solvers run on one thread.
    several = (2,) if len(case.X) > 1 else (1, 2) if peer == "adelie" else (1,)
    for threads in (1,) if options.smoke else several:
        asked = ask(peer, case, options, case.tols[peer][case.loss], threads)
        if isinstance(asked, str):
            return {peer: asked}
        answers += asked

    def fastest(target: float) -> Answer:
        enough = [answer for answer in answers if answer.gap <= target]
        return (
            min(enough, key=lambda a: np.median(a.seconds))
            if enough
            else min(answers, key=lambda a: a.gap)
        )

    target = TARGET[options.dtype]
    found: dict[str, Answer | str] = {peer: fastest(target)}
    return (
        found | {f"{peer}, loose": fastest(10 * target)} if case.tols == LONG_PATH_TOLS else found
    )
