"""Log-probabilities of many logged sets against the policy's own, one set at a time."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import control
from jaxsac.control.data.log import checked
from jaxsac.control.policy.scoring import log_probabilities, marginals
from jaxsac.problems.tool_logs import sparse_tool_log

T, M, Q, B = 300, 9, 2, 3
TRUTH = sparse_tool_log(
    jax.random.key(0),
    num_records=T,
    num_actions=M,
    num_features=Q,
    budget=B,
    num_relevant=2,
    mean_size=1.5,
)
LOG = control.Log(TRUTH.contexts, TRUTH.actions)


def test_log_probabilities_against_the_policy():
    random = np.random.default_rng(0)
    intercept = np.round(random.normal(size=M), 1)
    policy = control.SparsePolicy.of([1, 4], random.normal(size=(2, Q)), intercept, B)
    contexts, actions = jnp.asarray(LOG.contexts), jnp.asarray(LOG.actions)
    expected = jax.vmap(policy.log_prob)(actions, contexts)
    plain = checked(LOG, M, B)
    np.testing.assert_allclose(log_probabilities(policy, plain), expected, rtol=1e-10)
    available = np.ones((T, M), bool)
    available[:, 8] = (LOG.actions == 8).any(1)
    offered = checked(LOG._replace(available=available), M, B)
    expected = jax.vmap(policy.log_prob)(actions, contexts, available)
    np.testing.assert_allclose(log_probabilities(policy, offered), expected, rtol=1e-10)
    everything = checked(LOG._replace(available=np.ones((T, M), bool)), M, B)
    tools = np.array([2, 4, 8])
    np.testing.assert_allclose(
        marginals(policy, plain, tools), marginals(policy, everything, tools), rtol=1e-10
    )
