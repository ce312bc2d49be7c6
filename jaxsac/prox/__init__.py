"""Groups of coefficients, penalties, their dual norms and proximal operators, projections, and one
optax transformation.
"""

from jaxsac.prox.groups import Groups as Groups
from jaxsac.prox.groups import group_norms as group_norms
from jaxsac.prox.groups import vector_norm as vector_norm
from jaxsac.prox.norms import dual_group_norm as dual_group_norm
from jaxsac.prox.norms import dual_sparse_group_norm as dual_sparse_group_norm
from jaxsac.prox.norms import dual_tree_norm as dual_tree_norm
from jaxsac.prox.norms import group_norm as group_norm
from jaxsac.prox.norms import sparse_group_norm as sparse_group_norm
from jaxsac.prox.norms import tree_norm as tree_norm
from jaxsac.prox.operators import Level as Level
from jaxsac.prox.operators import project_box as project_box
from jaxsac.prox.operators import project_l1_ball as project_l1_ball
from jaxsac.prox.operators import project_l2_ball as project_l2_ball
from jaxsac.prox.operators import project_simplex as project_simplex
from jaxsac.prox.operators import prox_elastic_net as prox_elastic_net
from jaxsac.prox.operators import prox_group as prox_group
from jaxsac.prox.operators import prox_l1 as prox_l1
from jaxsac.prox.operators import prox_sparse_group as prox_sparse_group
from jaxsac.prox.operators import prox_tree as prox_tree
from jaxsac.prox.penalty import Penalty as Penalty
from jaxsac.prox.transform import ProximalState as ProximalState
from jaxsac.prox.transform import proximal as proximal
