"""Sets of tools as random variables of numpyro models; needs the extra `numpyro`."""

from jaxsac.numpyro.subset import Subset as Subset
