"""skglm on group-lasso problems without intercept, weight 1 for every group; its compiled classes
are built before the clock starts.
"""

import warnings

import numpy as np
from clock import timed_fits


def answer(arrays, settings):
    import skglm
    from skglm.datafits import LogisticGroup, QuadraticGroup
    from skglm.penalties import WeightedGroupL2
    from skglm.solvers import GroupBCD, GroupProxNewton
    from skglm.utils.data import grp_converter
    from skglm.utils.jit_compilation import compiled_clone

    warnings.simplefilter("ignore")
    problems = [(np.asfortranarray(X), y) for X, y in zip(arrays["X"], arrays["y"], strict=True)]
    num_columns = problems[0][0].shape[1]
    indices, pointers = grp_converter(settings["group_size"], num_columns)
    squared = settings["loss"] == "squared"
    datafit = compiled_clone((QuadraticGroup if squared else LogisticGroup)(pointers, indices))
    penalty = compiled_clone(WeightedGroupL2(1.0, np.ones(pointers.size - 1), pointers, indices))

    def fit(X, y, lams, tol):
        solver = (
            GroupBCD(tol=tol, max_iter=1000) if squared else GroupProxNewton(tol=tol, max_iter=100)
        )
        solver.warm_start = True
        coefs, coef = [], np.zeros(num_columns)
        for lam in lams:
            penalty.alpha = lam
            if hasattr(datafit, "initialize"):
                datafit.initialize(X, y)
            coef = solver.solve(X, y, datafit, penalty, w_init=coef.copy(), Xw_init=X @ coef)[0]
            coefs.append(coef)
        return coefs

    return timed_fits(fit, problems, arrays["lams"], settings, skglm.__version__)
