"""What every solver returns: a value, a status code per lane, numbers about the run, and a state to
continue from.
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.core
import jax.export
import numpy as np


class Status(enum.IntEnum):
    """How a solver ended. Solvers store the code as an int32 array, one per lane; `message` says
    what to do about it.
    """

    CONVERGED = 0
    MAX_STEPS = 1
    NONFINITE = 2
    STALLED = 3
    INFEASIBLE = 4

    @property
    def message(self) -> str:
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "the certificate, recomputed from scratch, meets the tolerance.",
    Status.MAX_STEPS: "the step limit came before the tolerance: raise `max_steps`, loosen `tol`, or warm-start from `solution.state`.",
    Status.NONFINITE: "a NaN or an infinity appeared: look for one in the data, and for scales that overflow the dtype.",
    Status.STALLED: "no more progress at this precision: loosen `tol`, or use float64 (`jax.config.update('jax_enable_x64', True)`).",
    Status.INFEASIBLE: "no feasible answer exists for this input: relax the budget, the masks or the constraints.",
}


class SolverError(RuntimeError):
    """Raised by `Solution.check` when a lane did not converge."""


class Solution(NamedTuple):
    """The answer of a solver; a pytree that passes through `jit`, `vmap`, `grad` and `jax.export`.

    `value` is the answer, `status` an int32 `Status` code (one per lane under `vmap`), `stats` a
    dict of arrays about the run, and `state` what a warm start or a checkpoint needs.
    """

    value: Any
    status: jax.Array
    stats: dict[str, Any]
    state: Any

    def check(self) -> "Solution":
        """Return `self` if every lane converged, else raise `SolverError` naming the lanes and what
        to do. Not for use inside `jit`.
        """
        if isinstance(self.status, jax.core.Tracer):
            raise TypeError(
                "Solution.check() needs concrete values: call it on what the jitted function returns; inside, test `status`."
            )
        codes = np.asarray(self.status)
        failed = np.unique(codes[codes != Status.CONVERGED])
        if failed.size == 0:
            return self
        lines = []
        for code in failed:
            where = ""
            if codes.ndim:
                lanes = [
                    tuple(map(int, lane)) if codes.ndim > 1 else int(lane[0])
                    for lane in np.argwhere(codes == code)
                ]
                shown = ", ".join(map(str, lanes[:10])) + (", ..." if len(lanes) > 10 else "")
                where = f" in {len(lanes)} of {codes.size} lanes ({shown})"
            lines.append(f"{Status(code).name}{where}: {Status(code).message}")
        raise SolverError("\n".join(lines))


jax.export.register_namedtuple_serialization(Solution, serialized_name="jaxsac.Solution")
