"""celer on least-squares group-lasso problems without intercept, weight 1 for every group."""

import warnings

import numpy as np
from clock import timed_fits


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
            X,
            y,
            pb="grouplasso",
            alphas=lams,
            groups=size,
            tol=tol,
            max_iter=100,
            max_epochs=50_000,
            weights=np.ones(X.shape[1] // size),
        )
        return coefs.T

    return timed_fits(fit, problems, arrays["lams"], settings, celer.__version__)
