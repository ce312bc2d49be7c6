"""What every solver returns: a value, a status code per lane, numbers about the run, and a state to
continue from.
"""

import dataclasses
import enum
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.core
import jax.export
import jax.numpy as jnp
import numpy as np

Record = TypeVar("Record", bound=type)


def register(cls: Record) -> Record:
    """Let `jax.export` serialise a record: a class decorator for a NamedTuple, or for an equinox
    Module whose static fields hold what JSON can say (numbers, strings, booleans, None, tuples).

    A record is known by the name of its module and class: each is registered by itself, not with
    its base class, and so is every record that its fields hold.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    if not issubclass(cls, eqx.Module):
        return jax.export.register_namedtuple_serialization(cls, serialized_name=name)
    fields = sorted(dataclasses.fields(cls), key=lambda field: field.metadata.get("static", False))

    def refuse(value: Any) -> Any:
        raise TypeError(f"{name} cannot be exported: one of its static fields holds {value!r}.")

    def build(aux_data: list[Any], children: Sequence[Any]) -> Any:
        record = object.__new__(cls)
        for field, value in zip(fields, [*children, *map(_hashable, aux_data)], strict=True):
            object.__setattr__(record, field.name, value)
        return record

    # What equinox keeps beside the arrays: a marker, then the static fields in their order.
    return jax.export.register_pytree_node_serialization(
        cls,
        serialized_name=name,
        serialize_auxdata=lambda kept: json.dumps(kept[1:], default=refuse).encode(),
        deserialize_auxdata=lambda text: json.loads(bytes(text)),
        from_children=build,
    )


def _hashable(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


class Hashable(eqx.Module):
    """A pytree whose bound methods go through `jax.jit`, which hashes them."""

    __hash__ = object.__hash__


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
    Status.MAX_STEPS: "the step limit came before the tolerance: raise `max_steps`, loosen `tol`,"
    " or warm-start from `solution.state`.",
    Status.NONFINITE: "a NaN or an infinity appeared: look for one in the data, and for scales that"
    " overflow the dtype.",
    Status.STALLED: "no more progress at this precision: loosen `tol`, or use float64"
    " (`jax.config.update('jax_enable_x64', True)`).",
    Status.INFEASIBLE: "no feasible answer exists for this input: relax the budget, the masks or"
    " the constraints.",
}


class Reason(enum.IntEnum):
    """Why a solver ended as it did, where the `Status` alone does not say it: `stats["reason"]`, an
    int32 array, one per lane.
    """

    NONE = 0
    PRECISION = 1
    PATIENCE = 2
    NO_MINIMISER = 3
    EARLY_STOP = 4
    LOWER_LEVEL = 5

    @property
    def message(self) -> str:
        return _ADVICE[self]


_ADVICE = {
    Reason.NONE: "nothing to add.",
    Reason.PRECISION: "all that is left of the error is rounding: only float64 or a larger `tol`"
    " helps.",
    Reason.PATIENCE: "the certificate no longer falls though rounding would allow it: rescale the"
    " data, regularise, or loosen `tol`.",
    Reason.NO_MINIMISER: "the objective has no minimiser, or none that can be certified: add a"
    " ridge, or penalise what is free.",
    Reason.EARLY_STOP: "the value to be minimised no longer fell: take the answer as it is, or"
    " raise `patience`.",
    Reason.LOWER_LEVEL: "the upper variable waited for a lower level that its steps had not solved:"
    " take more `inner_steps`, another `inner` or rate, or outer steps by `bilevel.hypergradient`,"
    " which solves it by Newton's method.",
}

RUNNING = int(np.iinfo(np.int32).max)  # no Status has this code, and it never leaves a loop


def verdict(certificate: Any, tol: Any, *, progress: Any, more: Any) -> Any:
    """How a loop ends after a check, as an int32 code, or RUNNING; for NumPy and traced numbers.

    `certificate` is (error, rounding, scale). In this order:

    * NONFINITE  when error, rounding or scale is NaN or infinite,
    * CONVERGED  when error + rounding ≤ tol · scale,
    * STALLED    when error ≤ rounding, or without `progress`,
    * MAX_STEPS  when no `more` steps may be taken.
    """
    error, rounding, scale = certificate
    xp = _namespace(error, tol, progress, more)
    code = xp.where(more, xp.int32(RUNNING), xp.int32(Status.MAX_STEPS))
    stalled = (error <= rounding) | xp.logical_not(progress)
    code = xp.where(stalled, xp.int32(Status.STALLED), code)
    code = xp.where(error + rounding <= tol * scale, xp.int32(Status.CONVERGED), code)
    finite = xp.isfinite(error) & xp.isfinite(rounding) & xp.isfinite(scale)
    return xp.where(finite, code, xp.int32(Status.NONFINITE))


def reason_of(status: Any, certificate: Any) -> Any:
    """The `Reason` that a status and (error, rounding, scale) give away: PRECISION or PATIENCE of
    what STALLED, else NONE.
    """
    error, rounding, _ = certificate
    xp = _namespace(status, error)
    kind = xp.where(error <= rounding, xp.int32(Reason.PRECISION), xp.int32(Reason.PATIENCE))
    return xp.where(xp.equal(status, Status.STALLED), kind, xp.int32(Reason.NONE))


def _namespace(*numbers: Any) -> Any:
    """NumPy where all is on the host: a program for each comparison would take longer."""
    return jnp if any(isinstance(x, jax.Array) for x in numbers) else np


class SolverError(RuntimeError):
    """Raised by `Solution.check` when a lane did not converge."""


@register
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
                "Solution.check() needs concrete values: call it on what the jitted function"
                " returns; inside, test `status`."
            )
        codes = np.asarray(self.status)
        reasons = np.asarray(self.stats.get("reason", np.zeros_like(codes)))
        lines = []
        for code, reason in sorted(
            {*zip(codes.ravel().tolist(), reasons.ravel().tolist(), strict=True)}
        ):
            if code == Status.CONVERGED:
                continue
            where = ""
            if codes.ndim:
                lanes = [
                    tuple(map(int, lane)) if codes.ndim > 1 else int(lane[0])
                    for lane in np.argwhere((codes == code) & (reasons == reason))
                ]
                shown = ", ".join(map(str, lanes[:10])) + (", ..." if len(lanes) > 10 else "")
                where = f" in {len(lanes)} of {codes.size} lanes ({shown})"
            advice = f" {Reason(reason).name}: {Reason(reason).message}" if reason else ""
            lines.append(f"{Status(code).name}{where}: {Status(code).message}{advice}")
        if not lines:
            return self
        raise SolverError("\n".join(lines))
