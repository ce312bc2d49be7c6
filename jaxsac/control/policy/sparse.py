"""The fitted policy: a few tools that look at the context, an intercept for every tool, and a
budget.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxsac import _checks, _files, gibbs

KIND = "jaxsac.control.SparsePolicy"
NO_ACTION = -1


class SparsePolicy(eqx.Module):
    """pi(a | psi) ∝ exp sum_{j in a} z_j over |a| <= B, z_j = <theta_j, psi> + b_j with theta_j = 0
    outside the support. A pytree.

    positions int32 [k] (ascending) and weights [k, q] are the tools that look at the context;
    intercept [M]; background int32 [<= B] are tools outside the support that their intercept alone
    brought into the B best of some logged context; tools int32 [M] are the original names of the
    actions in ascending order in a pruned policy, None in a full one (names 0..M-1). All methods
    are unbatched and can be jitted and vmapped.
    """

    positions: jax.Array
    weights: jax.Array
    intercept: jax.Array
    background: jax.Array
    tools: jax.Array | None
    budget: int = eqx.field(static=True)

    @property
    def num_actions(self) -> int:
        return self.intercept.shape[-1]

    @property
    def support(self) -> jax.Array:
        """The tools with theta_j != 0, int32 [k], ascending."""
        return self._names(self.positions)

    @property
    def kept(self) -> jax.Array:
        """Support and background: the tools that a router needs, int32, ascending."""
        return jnp.sort(jnp.concatenate([self.support, self._names(self.background)]))

    def scores(self, context: Any, available: Any = None) -> jax.Array:
        """z [M] for a context [q]; -inf where `available` (booleans [M]) is False."""
        context = _checks.real_array(
            "context", context, (self.weights.shape[-1],), self.weights.dtype
        )
        scores = self.intercept.at[self.positions].add(
            jnp.matmul(self.weights, context, precision="highest")
        )
        if available is None:
            return scores
        available = jnp.asarray(available)
        _checks.require(
            available.dtype == bool, f"available must be boolean, got {available.dtype}."
        )
        _checks.check_shape("available", available, (self.num_actions,))
        return jnp.where(available, scores, -jnp.inf)

    def act(self, context: Any, available: Any = None, *, exactly: bool = False) -> jax.Array:
        """The most probable set, int32 [B], best first, padded with -1: the B best scores, without
        those <= 0 unless `exactly`.

        With intercepts per tool a score is positive only where the tool is more likely used than
        not: for a ranking of B tools pass exactly=True. Ties go to the lowest index.
        """
        scores = self.scores(context, available)
        best, index = jax.lax.top_k(scores, min(self.budget, self.num_actions))
        taken = (best > -jnp.inf) if exactly else (best > 0)
        names = jnp.where(taken, self._names(index.astype(jnp.int32)), NO_ACTION)
        return jnp.concatenate([names, jnp.full((self.budget - names.size,), NO_ACTION, jnp.int32)])

    def offer(self, context: Any, costs: Any, limit: int, available: Any = None) -> jax.Array:
        """The tools to offer under a budget of tokens: argmax over sets of total cost <= `limit` of
        sum_{j in a} P(j in a | psi).

        That is the largest expected number of the policy's own tools among those offered. `costs`
        integers >= 0 [M] in units that keep `limit` small (64 tokens, say): exact by dynamic
        programming, O(M limit). Returns int32 [most that fit], most probable first, padded with -1;
        `limit` is static, and so are concrete costs.
        """
        scores = self.scores(context, available)
        index = gibbs.mode(gibbs.marginals(scores, budget=self.budget), budget=limit, costs=costs)
        return jnp.where(index >= 0, self._names(jnp.maximum(index, 0)), NO_ACTION)

    def sample(
        self, key: jax.Array, context: Any, available: Any = None, *, num_samples: int | None = None
    ) -> jax.Array:
        """Exact samples of the policy, int32 [B] (or [num_samples, B]), padded with -1. The key is
        consumed.
        """
        scores = self.scores(context, available)
        draws = gibbs.sample(key, scores, budget=self.budget, num_samples=num_samples or 1)
        names = jnp.where(draws >= 0, self._names(jnp.maximum(draws, 0)), NO_ACTION)
        return names if num_samples else names[0]

    def log_prob(self, actions: Any, context: Any, available: Any = None) -> jax.Array:
        """log pi(a | psi) of a set given as int32 [any], -1 ignored; -inf for sets with duplicates,
        unknown or unavailable tools, or too many.
        """
        scores = self.scores(context, available)
        actions = _checks.integer_array("actions", actions, (None,))
        if self.tools is None:
            return gibbs.log_prob(actions, scores, budget=self.budget)
        local = jnp.searchsorted(self.tools, actions).astype(jnp.int32)
        known = (actions < 0) | (jnp.take(self.tools, local, mode="clip") == actions)
        value = gibbs.log_prob(
            jnp.where((actions >= 0) & known, local, NO_ACTION), scores, budget=self.budget
        )
        return jnp.where(jnp.all(known), value, -jnp.inf)

    def pruned(self, tools: Any = None) -> "SparsePolicy":
        """The same policy on the kept tools alone (or on `tools`, int [any]): what is deployed.
        Actions keep their original names.
        """
        chosen = (
            self.kept
            if tools is None
            else jnp.unique(_checks.integer_array("tools", tools, (None,)))
        )
        chosen = np.asarray(chosen)
        names = np.arange(self.num_actions) if self.tools is None else np.asarray(self.tools)
        _checks.require(bool(np.isin(chosen, names).all()), "tools must be tools of this policy.")
        local = np.searchsorted(names, chosen)
        inside = np.isin(np.asarray(self.positions), local)
        return SparsePolicy(
            positions=jnp.asarray(
                np.searchsorted(local, np.asarray(self.positions)[inside]), jnp.int32
            ),
            weights=self.weights[inside],
            intercept=self.intercept[local],
            background=jnp.asarray(
                np.searchsorted(local, np.intersect1d(np.asarray(self.background), local)),
                jnp.int32,
            ),
            tools=jnp.asarray(chosen, jnp.int32),
            budget=self.budget,
        )

    def save(self, path: Any) -> None:
        """Write to `path` as npz with a JSON header and a checksum, atomically."""
        arrays = {
            "positions": self.positions,
            "weights": self.weights,
            "intercept": self.intercept,
            "background": self.background,
        }
        if self.tools is not None:
            arrays["tools"] = self.tools
        _files.save(path, KIND, arrays, {"budget": self.budget, "pruned": self.tools is not None})

    def _names(self, positions: jax.Array) -> jax.Array:
        return positions if self.tools is None else self.tools[positions]


def load_policy(path: Any) -> SparsePolicy:
    """Read a policy written by `SparsePolicy.save`; a file that is damaged, foreign or inconsistent
    raises `jaxsac.FileError`.
    """
    arrays, metadata = _files.load(path, KIND)
    expected: dict[str, tuple[str, tuple[int | str | None, ...]]] = {
        "positions": ("i", ("k",)),
        "weights": ("f", ("k", "q")),
        "intercept": ("f", ("M",)),
        "background": ("i", (None,)),
    }
    if "tools" in arrays:
        expected["tools"] = ("i", ("M",))
    try:
        _files.check(arrays, expected)
        budget = metadata.get("budget")
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise _files.FileError(f"the budget {budget!r} is not a whole number >= 0.")
        num_actions = arrays["intercept"].size
        for name, limit in (
            ("positions", num_actions),
            ("background", num_actions),
            ("tools", np.iinfo(np.int32).max),
        ):
            values = arrays.get(name, np.zeros(0, np.int32))
            if values.size and (
                values[0] < 0 or values[-1] >= limit or (np.diff(values) <= 0).any()
            ):
                raise _files.FileError(f"{name} must ascend from 0 to below {limit}.")
        if np.isin(arrays["positions"], arrays["background"]).any():
            raise _files.FileError("a tool is in the support and in the background.")
        if (
            not np.isfinite(arrays["weights"]).all()
            or np.isnan(arrays["intercept"]).any()
            or (arrays["intercept"] == np.inf).any()
        ):
            raise _files.FileError("weights or intercepts are not finite.")
    except _files.FileError as error:
        raise _files.FileError(f"{path}: {error}") from None
    values = {name: jnp.asarray(value) for name, value in arrays.items()}
    return SparsePolicy(
        positions=values["positions"].astype(jnp.int32),
        weights=values["weights"],
        intercept=values["intercept"],
        background=values["background"].astype(jnp.int32),
        tools=values["tools"].astype(jnp.int32) if "tools" in values else None,
        budget=metadata["budget"],
    )
