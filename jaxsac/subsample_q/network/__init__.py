"""Q-networks that do not care in which order the agents come, for local states that are too many
for a table, or continuous.
"""

from jaxsac.subsample_q.network._acting import (
    EnvironmentRun as EnvironmentRun,
    act as act,
    simulate as simulate,
)
from jaxsac.subsample_q.network._learning import (
    Environment as Environment,
    QNetwork as QNetwork,
    Training as Training,
    from_model as from_model,
    learn_network as learn_network,
    network_table as network_table,
)
