"""celer on least-squares group-lasso problems without intercept, weight 1 for every group."""

import warnings

import numpy as np
from exchange import seconds, serve


def answer(arrays, settings):
    import celer
    from celer.homotopy import celer_path

    warnings.simplefilter("ignore")
    if settings["loss"] != "squared":
        raise ImportError("celer has no group lasso for this loss")
    problems = [(np.asfortranarray(X), y) for X, y in zip(arrays["X"], arrays["y"], strict=True)]
    size = settings["group_size"]

    def fit(X, y, lams, tol):
        _, coefs, _ = celer_path(
            X, y, pb="grouplasso", alphas=lams, groups=size, tol=tol, max_iter=100, max_epochs=50_000, weights=np.ones(X.shape[1] // size)
        )
        return coefs.T

    coefs, times = [], []
    for tol in settings["tols"]:

        def solve(tol=tol):
            return [fit(X, y, lams, tol) for (X, y), lams in zip(problems, arrays["lams"], strict=True)]

        coefs.append(solve())
        times.append(seconds(solve, min_repeats=settings["min_repeats"], min_seconds=settings["min_seconds"]))
    return {"coef": np.asarray(coefs)}, {"seconds": times, "version": celer.__version__}


serve(answer)
