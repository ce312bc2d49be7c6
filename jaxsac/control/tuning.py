"""How much to penalise: the largest useful lam, the multiplier simulation, and the rate of the theory."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsac.control.digest import Digest
from jaxsac.control.likelihood import Evaluation

CONFIDENCE = 0.95
MARGIN = 1.1
NUM_DRAWS = 500
DRAW_BLOCK = 10


def simulated(key: jax.Array, data: Digest, rates: np.ndarray, unused_rate: float, num_draws: int = NUM_DRAWS) -> float:
    """1.1 x the 95 % quantile of max_j ||(1/T) sum_t eps_t (g_tj - mean g_j)||, g_tj = c_t (1[j in a_t] - mu_j) psi_t, eps ~ N(0, 1).

    The pilot is the null model: intercepts fitted, no weights, so mu_j (`rates` [U]) does not depend on the record. Unused tools share one vector;
    the used ones cost their uses: the T x M score matrix is never formed. The key is consumed.
    """
    records = data.num_records
    contexts = np.asarray(data.contexts, np.float64)[1 : records + 1]
    scale = np.asarray(data.row_weights, np.float64)[1 : records + 1]  # c_t / T
    weighted = contexts * scale[:, None]
    mean_context = weighted.sum(0)
    centre = (data.feature_sums - rates[:, None] * mean_context) / records * 1.0
    starts = np.searchsorted(data.entry_tool, np.arange(data.used.size))
    largest = np.empty(num_draws)
    noise = np.asarray(jax.random.normal(key, (num_draws, records), jnp.float32), np.float64)
    for draw in range(num_draws):
        product = noise[draw][:, None] * weighted
        common = product.sum(0)
        total = noise[draw].sum()
        value = 0.0
        if data.used.size:
            own = np.add.reduceat(product[data.entry_record], starts, axis=0) - rates[:, None] * common - total * centre
            value = float(np.sqrt(np.einsum("uq,uq->u", own, own).max()))
        if data.group_size[-1] > 0:
            value = max(value, unused_rate * float(np.linalg.norm(common - total / records * mean_context)))
        largest[draw] = value
    return MARGIN * float(np.quantile(largest, CONFIDENCE))


def theory(data: Digest, rates: np.ndarray, unused_rate: float) -> float:
    """2 sigma_g (sqrt(q / T) + sqrt(2 log M / T)), sigma_g^2 = max_j lambda_max((1/T) sum_t c_t^2 mu_j (1 - mu_j) psi_t psi_t') at the null model."""
    records = data.num_records
    contexts = np.asarray(data.contexts, np.float64)[1 : records + 1]
    scale = np.asarray(data.row_weights, np.float64)[1 : records + 1] * records
    moment = (contexts * (scale**2)[:, None]).T @ contexts / records
    rate = np.append(rates, unused_rate if data.group_size[-1] > 0 else 0.0)
    sigma = np.sqrt(np.max(rate * (1 - rate)) * np.linalg.eigvalsh(moment)[-1])
    q = contexts.shape[1]
    return float(2 * sigma * (np.sqrt(q / records) + np.sqrt(2 * np.log(max(data.num_actions, 2)) / records)))


def null_rates(data: Digest, found: Evaluation) -> tuple[np.ndarray, float]:
    """Marginals of the null model: of each used tool, and of an unused one."""
    size = data.group_frequency.size
    gradient = np.asarray(found.group_gradient, np.float64)
    gradient = np.concatenate([gradient[: size - 1], gradient[-1:]])
    mass = 1.0 + float(data.row_weights[0])
    rates = (gradient + data.group_frequency + data.prior_use) / mass
    return rates[data.group], float(rates[-1])
