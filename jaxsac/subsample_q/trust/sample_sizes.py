"""What the theory asks for: agents and samples that are enough for a gap, in advance."""

import bisect
import math
from typing import NamedTuple

from jaxsac import _checks
from jaxsac._arguments import arguments, real, size
from jaxsac.subsample_q.data.kinds import PLAIN_MODEL
from jaxsac.subsample_q.data.model import Model, check_discount


class SampleSizes(NamedTuple):
    """Agents and samples that are enough, by theory."""

    k: int  # agents to sample
    num_samples: int  # of every state and action of k agents, as in `learn`
    total: int  # of all of them


@arguments(
    model=PLAIN_MODEL, num_agents=size(1), epsilon=real(above=0), delta=real(above=0, below=1)
)
def sample_sizes(model: Model, num_agents: int, epsilon: float, delta: float) -> SampleSizes:
    """The k and m with which `learn` is within `epsilon` of the best value on n agents, with chance
    1 − delta, as the paper says; on the host.

        V_n* − V^π ≤ 2 r̃ / (1 − γ)² (√((n − k + 1) / (2 n k) · ln(2 L A √k)) + 1 / √k)
                     + 2 ε_{k,m} / (1 − γ),
        ε_{k,m} ≤ 2 γ r̃ / (1 − γ)² √(ln(2 G N A / delta) / (2 m))

    with r̃ = max|r| and N histograms of k agents. Half of `epsilon` goes to each term; at k = n the
    first one is 0. The second line is Hoeffding's bound, over all G N A states and actions.

    These numbers are larger by many orders than what is needed (`certify` and `choose_k` say what
    is), and the proof of the first line rests on a lemma that does not hold as stated.

    * `epsilon`: > 0, in units of the value; `delta`: in (0, 1).

    Returns: `SampleSizes`.

    Raises: ValueError for a discount of 1, and traced models.

    Source: arXiv 2403.00222, theorem 3.4; Hoeffding 1963.
    """
    check_discount(model)
    _checks.require(_checks.is_concrete(model), "model must be known, not traced.")
    discount, most = float(model.discount), float(model.max_reward())
    G, A, L, n = model.num_global_states, model.num_actions, model.num_local_states, num_agents
    unit = 2 * most / (1 - discount) ** 2

    def bound(k: int) -> float:
        concentrated = (n - k + 1) / (2 * n * k) * math.log(2 * L * A * math.sqrt(k))
        return unit * (math.sqrt(concentrated) + 1 / math.sqrt(k)) if k < n else 0.0

    # the bound falls in k
    k = bisect.bisect_left(range(n), True, 1, key=lambda k: bound(k) <= epsilon / 2)
    states = G * math.comb(k + L - 1, L - 1) * A
    share = (1 - discount) * epsilon / 4  # of ε_{k,m}
    number = math.log(2 * states / delta) / 2 * (discount * unit / share) ** 2
    m = max(1, math.ceil(number))
    return SampleSizes(k, m, m * states)
