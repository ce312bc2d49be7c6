"""The multiplier simulation against its dense form, and the theory's rate."""

import jax
import numpy as np
from numpy.testing import assert_allclose

from jaxsac import control
from jaxsac.control.fits import tuning
from jaxsac.problems.tool_logs import sparse_tool_log

KEY = jax.random.key(0)
T, M, Q, B = 120, 9, 2, 3
TRUTH = sparse_tool_log(
    jax.random.key(5),
    num_records=T,
    num_actions=M,
    num_features=Q,
    budget=B,
    num_relevant=2,
    mean_size=1.5,
    relevant_share=0.7,
)
LOG = control.Log(TRUTH.contexts, TRUTH.actions, TRUTH.utilities)


def dense_scores(rates, weight):
    chosen = np.stack([(LOG.actions == j).any(1) for j in range(M)])
    return weight[None, :, None] * (chosen[:, :, None] - rates[:, None, None]) * LOG.contexts[None]


def test_simulated_lam_against_the_dense_scores():
    lam = float(control.simulated_lam(KEY, control.Task(LOG, M, B, smoothing=1e-9)))
    used = np.array([(LOG.actions == j).any(1).mean() for j in range(M)])
    scores = dense_scores(used, np.ones(T))
    centred = scores - scores.mean(1, keepdims=True)
    noise = np.asarray(jax.random.normal(KEY, (tuning._NUM_DRAWS, T), np.float32), np.float64)
    norms = np.linalg.norm(np.einsum("rt,jtq->rjq", noise, centred) / T, axis=2).max(1)
    assert_allclose(lam, 1.1 * np.quantile(norms, 0.95), rtol=1e-6)
    everything = LOG._replace(available=np.ones((T, M), bool))
    offered = control.simulated_lam(KEY, control.Task(everything, M, B, smoothing=1e-9))
    assert_allclose(offered, lam, rtol=1e-5)
    moments = [
        np.linalg.eigvalsh(p * (1 - p) * LOG.contexts.T @ LOG.contexts / T)[-1] for p in used
    ]
    theory = control.fit(
        KEY, LOG, num_actions=M, budget=B, lam="theory", smoothing=1e-9, max_steps=0
    ).stats["lam"]
    assert_allclose(
        theory, 2 * np.sqrt(max(moments)) * (np.sqrt(Q / T) + np.sqrt(2 * np.log(M) / T)), rtol=1e-6
    )
