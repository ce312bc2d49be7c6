"""The peer's side of the exchange. Imports nothing but numpy: the interpreter that runs it need not
have jax or jaxsac.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def serve(
    answer: Callable[
        [dict[str, np.ndarray], dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]
    ],
) -> None:
    """Read the arrays and settings that `run_peer` left, call `answer(arrays, settings)`, and write
    the (arrays, numbers) it returns.
    """
    folder = pathlib.Path(sys.argv[1])
    arrays = {
        path.stem.removeprefix("in_"): np.load(path, allow_pickle=False)
        for path in sorted(folder.glob("in_*.npy"))
    }
    settings = json.loads((folder / "settings.json").read_text())
    try:
        outputs, numbers = answer(arrays, settings)
        for name, value in outputs.items():
            np.save(folder / f"out_{name}.npy", np.asarray(value), allow_pickle=False)
        result = {"status": "ok"} | numbers
    except ImportError as error:
        result = {"status": f"not run: {error}"}
    # Last and in one step: an answer that is there is whole.
    temporary = folder / "answer.tmp"
    temporary.write_text(json.dumps(result))
    temporary.rename(folder / "answer.json")


def seconds(
    thunk: Callable[[], Any], *, min_repeats: int = 20, min_seconds: float = 2.0
) -> list[float]:
    """Times of repeated calls after one warm-up: at least `min_repeats`, or `min_seconds` in all
    (and 3 calls).
    """
    thunk()
    times: list[float] = []
    while len(times) < 3 or (len(times) < min_repeats and sum(times) < min_seconds):
        start = time.perf_counter()
        thunk()
        times.append(time.perf_counter() - start)
    return times


def timed_fits(
    fit: Callable[..., Any], problems: Any, lams: Any, settings: dict[str, Any], version: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `serve` sends of fit(X, y, lams, tol) on every problem at each of the tolerances `tols`:
    coefficients, seconds, the version.
    """
    coefs, times = [], []
    for tol in settings["tols"]:

        def solve(tol=tol):
            return [fit(X, y, at, tol) for (X, y), at in zip(problems, lams, strict=True)]

        coefs.append(solve())
        times.append(
            seconds(solve, min_repeats=settings["min_repeats"], min_seconds=settings["min_seconds"])
        )
    return {"coef": np.asarray(coefs)}, {"seconds": times, "version": version}
