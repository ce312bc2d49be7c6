"""scikit-learn's MultiTaskLasso: one feature's coefficients for all outputs are a group; no
intercept.
"""

import warnings

import numpy as np
from clock import timed_fits


def answer(arrays, settings):
    import sklearn
    from sklearn.linear_model import MultiTaskLasso

    warnings.simplefilter("ignore")
    problems = [
        (np.asfortranarray(X), np.asfortranarray(y))
        for X, y in zip(arrays["X"], arrays["y"], strict=True)
    ]

    def fit(X, y, lams, tol):
        model = MultiTaskLasso(
            alpha=1.0, tol=tol, max_iter=100_000, fit_intercept=False, warm_start=True
        )
        return [model.set_params(alpha=lam).fit(X, y).coef_.T.copy() for lam in lams]

    return timed_fits(fit, problems, arrays["lams"], settings, sklearn.__version__)
