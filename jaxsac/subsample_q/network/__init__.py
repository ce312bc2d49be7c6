"""Q-networks that do not care in which order the agents come, for local states that are too many
for a table, or continuous.
"""

from jaxsac.subsample_q.network._learning import Environment as Environment
from jaxsac.subsample_q.network._learning import QNetwork as QNetwork
from jaxsac.subsample_q.network._learning import Training as Training
from jaxsac.subsample_q.network._learning import from_model as from_model
from jaxsac.subsample_q.network._learning import learn_network as learn_network
from jaxsac.subsample_q.network._learning import network_table as network_table
