"""Which form of the exact expectation to use, and its pivots; on the host."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks
from jaxsac._arguments import anything, arguments, choice, flag, integer, real, record, size
from jaxsac.subsample_q.data.histograms import check_size, largest_k, num_histograms
from jaxsac.subsample_q.data.model import Model
from jaxsac.subsample_q.exact.operator.forms.lumping import find_lumping
from jaxsac.subsample_q.exact.operator.forms.pivots import Order, pivot_order
from jaxsac.subsample_q.exact.operator.forms.thinning import gathers_of

BACKENDS = ("dense", "exchange", "thinning", "sampled", "lumped")  # positions: stats["backend"]
CHOICE_OF_BACKEND = choice("auto", "dense", "exchange", "thinning", "lumped")
_SMALL = 300  # up to this many histograms a dense product is the fastest form
_DENSE_LIMIT = 2**31  # bytes of dense kernels that may be built


@arguments(
    backend=choice(*BACKENDS),
    k=size(1),
    reason=anything("why this form, in words"),
    **dict.fromkeys(("rows", "columns", "replacements", "entry", "leave", "classes"), integer(...)),
    num_classes=size(),
    by_rows=flag(),
    amplification=real(...),
)
class Plan(eqx.Module):
    """How the expectation over the next histogram is evaluated: the form, and the pivot order (or
    the classes) of every kernel. Leading axes [...] are [G], or [G, A] where actions drive agents.

    Made by `plan` from concrete local transitions; traced ones may then differ from those, as in a
    gradient or a batch of near-by models: the order decides the rounding, not the answer, and every
    solve measures that rounding.
    """

    backend: str = eqx.field(static=True)  # of BACKENDS
    k: int = eqx.field(static=True)  # agents
    reason: str = eqx.field(static=True)  # why this form, in words
    rows: jax.Array | None = None  # int32 [..., L], pivot of each step
    columns: jax.Array | None = None  # int32 [..., L]
    replacements: jax.Array | None = None  # int32 [..., L, L], as in `Order`
    entry: jax.Array | None = None  # int32 [..., N], gather into the first layout
    leave: jax.Array | None = None  # int32 [..., N], gather out of the last one
    amplification: jax.Array | None = None  # [...], of rounding, by the pivots: to be looked at
    classes: jax.Array | None = None  # int32 [..., L], of the local states
    num_classes: int = eqx.field(static=True, default=0)  # at most
    by_rows: bool = eqx.field(static=True, default=False)  # what the states of a class share


@arguments(model=record(Model), k=size(1), backend=CHOICE_OF_BACKEND)
def plan(model: Model, k: int, *, backend: str = "auto") -> Plan:
    """Choose the form of the exact operator for k agents, and its pivots; on the host, from
    concrete local transitions.

    * `backend`: "thinning" (2 L (L−1) C(k+L, L) flops a column), "exchange" (about the same, other
      rounding), "dense" (N² a column), "lumped" (N N_R a column, where local states have R < L
      different rows, or non-proportional columns; N_R histograms of R classes) or "auto": dense up
      to 300 histograms, else lumped where that is less work, else thinning.

    Returns: a `Plan`; leading axes of a batch of models are kept (map over the plan too).

    Raises: ValueError for traced transitions (unless dense), for tables beyond memory, and where no
    such form exists.
    """
    return candidates(model, k, backend)[0]


def candidates(model: Model, k: int, backend: str) -> list[Plan]:
    """Plans to try in this order; the solve's own test says whether one is accurate enough."""
    L, G, A = model.num_local_states, model.num_global_states, model.num_actions
    itemsize = model.dtype.itemsize
    size = check_size(k, L, itemsize * G * (2 * A + 12) + 16 * L)
    kernel_bytes = G * (A if model.action_drives_agents else 1) * itemsize
    dense_bytes = kernel_bytes * size**2
    dense_fits = dense_bytes <= _DENSE_LIMIT
    if backend == "dense" or L == 1 or (backend == "auto" and size <= _SMALL):
        _checks.require(
            dense_fits,
            f"backend='dense' needs {dense_bytes / 2**30:,.1f} GiB for {size:,} histograms at"
            f" k={k}: use backend='thinning', or a smaller k.",
        )
        return [Plan("dense", k, "asked for" if backend == "dense" else "few histograms")]
    if not _checks.is_concrete(model.local_transition):
        _checks.require(
            backend == "auto" and dense_fits and size <= 4 * _SMALL,
            f"local_transition is traced, and the exact operator over {size:,} histograms needs"
            " pivots: pass plan=subsample_q.plan(model, k) made from concrete values.",
        )
        return [Plan("dense", k, "traced transitions without a plan")]
    kernels = np.asarray(model.local_transition)
    if backend in ("auto", "lumped"):
        lumped = _lumped(kernels, k, 2 * kernel_bytes * size, backend)
        if lumped is not None:
            return [lumped]
    names = ("thinning", "exchange") if backend == "auto" else (backend,)
    why = "many histograms" if backend == "auto" else "asked for"
    tried = (_pivoted(kernels, k, name, why) for name in names)
    found = [one for one in tried if one is not None]
    if backend == "auto" and dense_fits and size <= 4000:
        found.append(Plan("dense", k, "the structured forms failed their test"))
    fits = largest_k(k + 1, lambda k: kernel_bytes * num_histograms(k, L) ** 2 <= _DENSE_LIMIT)
    _checks.require(
        bool(found),
        f"no pivot order exists for backend={backend!r} on this local_transition: use"
        f" backend='dense' (k={fits} fits) or learn(), which samples.",
    )
    return found


def _lumped(kernels: np.ndarray, k: int, bytes_per_class: int, backend: str) -> Plan | None:
    """The lumped form, where there is one that fits and, for "auto", is less work than shears."""
    L, lumping = kernels.shape[-1], find_lumping(kernels)
    lumped = num_histograms(k, lumping.num_classes if lumping else L)
    fits = bytes_per_class * lumped <= _DENSE_LIMIT
    _checks.require(
        backend == "auto" or (lumping is not None and fits),
        "backend='lumped' needs local states with equal rows or proportional columns, few enough"
        f" that their tables fit in memory; here {lumped:,} histograms of classes and"
        f" {bytes_per_class * lumped / 2**30:,.1f} GiB: use backend='auto', or a smaller k.",
    )
    less = backend == "lumped" or 2 * lumped < L * (L - 1) * (k + L) / L
    if lumping is None or not (fits and less):
        return None
    shared = "equal rows" if lumping.by_rows else "exchangeable states"
    return Plan(
        "lumped",
        k,
        f"{lumping.num_classes} classes of {shared} among {L} local states",
        classes=jnp.asarray(lumping.classes),
        num_classes=lumping.num_classes,
        by_rows=lumping.by_rows,
    )


def _pivoted(kernels: np.ndarray, k: int, name: str, why: str) -> Plan | None:
    """The form `name` with the best pivots that were found, if any were for every kernel."""
    with jax.ensure_compile_time_eval():  # what is kept must not be of a trace
        return _pivoted_once(kernels.tobytes(), kernels.shape, str(kernels.dtype), k, name, why)


@functools.lru_cache(maxsize=32)
def _pivoted_once(
    numbers: bytes, shape: tuple[int, ...], dtype: str, k: int, name: str, why: str
) -> Plan | None:
    """The same by content, for the search takes as long as a small solve."""
    kernels = np.frombuffer(numbers, dtype).reshape(shape)
    order = pivot_order(kernels, name)
    if not np.all(np.isfinite(order.amplification)):
        return None
    entry, leave = _gathers(order, k) if name == "thinning" else (None, None)
    rows, columns, replacements = (jnp.asarray(part) for part in order[:3])
    amplification = jnp.asarray(order.amplification, dtype)
    return Plan(name, k, why, rows, columns, replacements, entry, leave, amplification)


def _gathers(order: Order, k: int) -> tuple[jax.Array, jax.Array]:
    L = order.rows.shape[-1]
    each = zip(order.rows.reshape(-1, L), order.columns.reshape(-1, L), strict=True)
    pairs = [gathers_of(rows, columns, k) for rows, columns in each]
    entry, leave = (
        jnp.asarray(np.stack(part)).reshape(*order.rows.shape[:-1], -1)
        for part in zip(*pairs, strict=True)
    )
    return entry, leave
