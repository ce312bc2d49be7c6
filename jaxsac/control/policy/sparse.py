"""The fitted policy: a few tools that look at the context, an intercept for every tool, and a
budget.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, _files, gibbs
from jaxsac._arguments import anything, arguments, choice, either, integer, real, size
from jaxsac._arguments.numbers import computed
from jaxsac.solution import Hashable, register

_KIND = "jaxsac.control.SparsePolicy"
_NO_ACTION = gibbs.NO_ACTION
_CONTEXT, _SET = real("q"), integer("any")


@register
@arguments(
    coef=real("k", "q"),
    intercept=real("M"),
    positions=integer("k", low=0, below="M"),
    background=integer("any", low=0, below="M"),
    tools=either(integer("M", low=0), choice(None)),
    budget=size(),
    meaning=anything("(objective, intercept) of the task"),
)
class SparsePolicy(Hashable):
    """π(a | ψ) ∝ exp Σ_{j ∈ a} z_j over |a| ≤ B, z_j = ⟨θ_j, ψ⟩ + b_j with θ_j = 0 outside the
    support; a pytree.

    All methods are unbatched and can be jitted and vmapped. `SparsePolicy.of` makes a full policy.
    """

    positions: jax.Array  # int32 [k], ascending: the tools that look at the context
    coef: jax.Array  # θ [k, q], in nats per unit of context ("utility": in units of utility)
    intercept: jax.Array  # b [M]
    # Tools outside the support that their intercept alone brought into the B best of some context.
    background: jax.Array  # int32 [≤ B], ascending
    tools: jax.Array | None  # int32 [M], ascending: the actions' names if pruned; None: 0..M-1
    budget: int = eqx.field(static=True)  # B
    # Of the `Task` that it was fitted to; None: not known.
    meaning: tuple[str, str] | None = eqx.field(static=True, default=None)  # objective, intercept

    def __check_init__(self) -> None:
        for name in ("positions", "background", "tools"):
            values = getattr(self, name)
            if values is not None and _checks.is_concrete(values):
                limit = 2**31 if name == "tools" else self.num_actions
                steps = np.diff(np.asarray(values, np.int64), prepend=-1, append=limit)
                _checks.require(
                    bool((steps > 0).all()),
                    f"{name} must ascend from 0 to below {limit}, each tool once.",
                )

    @classmethod
    def of(
        cls,
        tools: Any,
        coef: Any,
        intercept: Any,
        budget: int,
        *,
        contexts: Any = None,
        dtype: Any = None,
        meaning: tuple[str, str] | None = None,
    ) -> "SparsePolicy":
        """The full policy whose tools [k] (ascending) have coefficients [k, q], beside intercepts
        [M]; with `contexts` [T, q] its background is found in them. On the host.
        """
        tools, coef, intercept = (np.asarray(array) for array in (tools, coef, intercept))
        found = tools[:0]
        if contexts is not None:
            found = _background(np.asarray(contexts), tools, coef, intercept, budget)
        dtype = coef.dtype if dtype is None else dtype
        return cls(
            positions=jnp.asarray(tools, jnp.int32),
            coef=jnp.asarray(coef, dtype),
            intercept=jnp.asarray(intercept, dtype),
            background=jnp.asarray(found, jnp.int32),
            tools=None,
            budget=budget,
            meaning=meaning,
        )

    @property
    def dtype(self) -> Any:
        return self.coef.dtype

    @property
    def num_actions(self) -> int:
        return self.intercept.shape[-1]

    @property
    def support(self) -> jax.Array:
        """The tools with θ_j ≠ 0, int32 [k], ascending."""
        return self._names(self.positions)

    @property
    def kept(self) -> jax.Array:
        """Support and background: the tools that a router needs, int32, ascending."""
        return jnp.sort(jnp.concatenate([self.support, self._names(self.background)]))

    def scores(self, context: Any, available: Any = None) -> jax.Array:
        """z [M] for a context [q]; −∞ where `available` (booleans [M]) is False."""
        context = _CONTEXT.take("context", context, self.dtype, q=self.coef.shape[-1])
        own = jnp.matmul(self.coef, context, precision="highest")
        scores = self.intercept.at[self.positions].add(own)
        if available is None:
            return scores
        available = _checks.boolean_array("available", available, (self.num_actions,))
        return jnp.where(available, scores, -jnp.inf)

    def act(self, context: Any, available: Any = None, *, fill: bool = False) -> jax.Array:
        """The most probable set, int32 [B], best first, padded with -1: the B best scores, without
        those ≤ 0 unless `fill` asks for as many as there are.

        With intercepts per tool a score is positive only where the tool is more likely used than
        not: for a ranking of B tools pass fill=True. Ties go to the lowest index.
        """
        scores = self.scores(context, available)
        best, index = jax.lax.top_k(scores, min(self.budget, self.num_actions))
        taken = (best > -jnp.inf) if fill else (best > 0)
        names = self._names(jnp.where(taken, index, _NO_ACTION).astype(jnp.int32))
        return jnp.pad(names, (0, self.budget - names.size), constant_values=_NO_ACTION)

    def offer(self, context: Any, costs: Any, limit: int, available: Any = None) -> jax.Array:
        """The tools to offer under a budget of tokens: argmax over sets of total cost ≤ `limit` of
        Σ_{j ∈ a} P(j ∈ a | ψ).

        That is the largest expected number of the policy's own tools among those offered. `costs`
        integers ≥ 0 [M] in units that keep `limit` small (64 tokens, say): exact by dynamic
        programming, O(M limit); `limit` is static, and so are concrete costs.

        Returns: int32 [most that fit], most probable first, padded with -1.
        """
        scores = self.scores(context, available)
        limit = size().take("limit", limit)
        index = gibbs.mode(gibbs.marginals(scores, budget=self.budget), budget=limit, costs=costs)
        return self._names(index)

    def sample(
        self, key: jax.Array, context: Any, available: Any = None, *, num_samples: int | None = None
    ) -> jax.Array:
        """Exact samples of the policy, int32 [B] (or [num_samples, B]), padded with -1. The key is
        consumed.
        """
        scores = self.scores(context, available)
        count = 1 if num_samples is None else num_samples
        draws = self._names(gibbs.sample(key, scores, budget=self.budget, num_samples=count))
        return draws[0] if num_samples is None else draws

    def log_prob(self, actions: Any, context: Any, available: Any = None) -> jax.Array:
        """log π(a | ψ) of a set given as int32 [any], -1 ignored; −∞ for tools that are unavailable
        or were pruned. Duplicates, unknown tools and too many: −∞ where the set is traced, a
        ValueError where it is concrete.
        """
        scores = self.scores(context, available)
        actions = _SET.take("actions", actions)
        if self.tools is None:
            return gibbs.log_prob(actions, scores, budget=self.budget)
        local = jnp.searchsorted(self.tools, actions).astype(jnp.int32)
        known = (actions < 0) | (jnp.take(self.tools, local, mode="clip") == actions)
        value = gibbs.log_prob(
            jnp.where((actions >= 0) & known, local, _NO_ACTION), scores, budget=self.budget
        )
        return jnp.where(jnp.all(known), value, -jnp.inf)

    def pruned(self, tools: Any = None) -> "SparsePolicy":
        """The same policy on the kept tools alone (or on `tools`, int [any]): what is deployed.
        Actions keep their original names. On the host.
        """
        chosen = self.kept if tools is None else _SET.take("tools", tools)
        chosen = np.unique(np.asarray(chosen))
        names = np.arange(self.num_actions) if self.tools is None else np.asarray(self.tools)
        _checks.require(bool(np.isin(chosen, names).all()), "tools must be tools of this policy.")
        local = np.searchsorted(names, chosen)
        positions = np.asarray(self.positions)
        inside = np.isin(positions, local)
        background = np.intersect1d(np.asarray(self.background), local)
        return SparsePolicy(
            positions=jnp.asarray(np.searchsorted(local, positions[inside]), jnp.int32),
            coef=self.coef[inside],
            intercept=self.intercept[local],
            background=jnp.asarray(np.searchsorted(local, background), jnp.int32),
            tools=jnp.asarray(chosen, jnp.int32),
            budget=self.budget,
            meaning=self.meaning,
        )

    def save(self, path: Any) -> None:
        """Write to `path` as npz with a JSON header and a checksum, atomically."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        if self.tools is not None:
            arrays["tools"] = self.tools
        metadata = {"budget": self.budget, "pruned": self.tools is not None}
        metadata["meaning"] = None if self.meaning is None else list(self.meaning)
        _files.save(path, _KIND, arrays, metadata)

    def _names(self, positions: jax.Array) -> jax.Array:
        """The actions' names at positions int32 [...], of which -1 stays."""
        if self.tools is None:
            return positions
        return jnp.where(positions >= 0, self.tools[jnp.maximum(positions, 0)], _NO_ACTION)


def _background(
    contexts: np.ndarray, support: np.ndarray, coef: np.ndarray, intercept: np.ndarray, budget: int
) -> np.ndarray:
    """Tools outside the support among the `budget` best of some context: their order never
    changes, so only the first few can be.
    """
    outside = np.array(intercept)
    outside[support] = -np.inf
    first = np.argsort(-outside, kind="stable")[: min(budget, outside.size - support.size)]
    scores = contexts @ coef.T + intercept[support]
    reached = [
        bool(((scores >= outside[tool]).sum(1) + place < budget).any())
        for place, tool in enumerate(first)
    ]
    return np.sort(first[np.asarray(reached, bool)])


_ARRAYS: dict[str, tuple[str, tuple[int | str | None, ...]]] = {
    "positions": ("i", ("k",)),
    "coef": ("f", ("k", "q")),
    "intercept": ("f", ("M",)),
    "background": ("i", (None,)),
}


@arguments(path=anything("the path of a file"))
def load_policy(path: Any) -> SparsePolicy:
    """Read a policy written by `SparsePolicy.save`.

    Raises: `jaxsac.FileError` for a file that is damaged, foreign or inconsistent.
    """
    arrays, metadata = _files.load(path, _KIND)
    meaning = metadata.get("meaning")
    try:
        _require_consistent(arrays, metadata)
        fields: Any = {"tools": None, "budget": metadata.get("budget")} | arrays
        return SparsePolicy(
            **fields, meaning=None if meaning is None else (str(meaning[0]), str(meaning[1]))
        )
    except ValueError as error:
        raise _files.FileError(f"{path}: {error}") from None


def _require_consistent(arrays: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """What the policy itself does not look at."""
    tools = {"tools": ("i", ("M",))} if "tools" in arrays else {}
    _files.check(arrays, _ARRAYS | tools)
    meaning = metadata.get("meaning")
    if meaning is not None and not (isinstance(meaning, list) and len(meaning) == 2):
        raise _files.FileError(f"the meaning {meaning!r} is not a pair of names.")
    if np.isin(arrays["positions"], arrays["background"]).any():
        raise _files.FileError("a tool is in the support and in the background.")
    intercept = arrays["intercept"]
    most = np.finfo(computed(float)).max  # float64 becomes float32 where x64 is off
    if not (np.abs(arrays["coef"]) <= most).all() or not (intercept < np.inf).all():
        raise _files.FileError("coefficients or intercepts are not finite.")
