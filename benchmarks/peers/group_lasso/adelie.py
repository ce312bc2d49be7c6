"""adelie on group-lasso problems without intercept, weight 1 for every group. `tols` are its change
criterion, not a duality gap.
"""

import numpy as np
from clock import timed_fits


def answer(arrays, settings):
    import adelie

    problems = [(np.asfortranarray(X), y) for X, y in zip(arrays["X"], arrays["y"], strict=True)]
    size, loss, threads = settings["group_size"], settings["loss"], settings["threads"]
    starts = np.arange(0, problems[0][0].shape[1], size)

    def fit(X, y, lams, tol):
        glm = (
            adelie.glm.gaussian(y=y)
            if loss == "squared"
            else adelie.glm.binomial(y=(y > 0).astype(float))
        )
        state = adelie.grpnet(
            X,
            glm,
            groups=starts,
            penalty=np.ones(starts.size),
            lmda_path=lams,
            intercept=False,
            early_exit=False,
            tol=tol,
            irls_tol=tol,
            n_threads=threads,
            progress_bar=False,
        )
        return state.betas.toarray()

    return timed_fits(fit, problems, arrays["lams"], settings, adelie.__version__)
