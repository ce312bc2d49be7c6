"""Exact sets from a tree of polynomials: its leaves are the tools, taken with the probabilities of
a tilt, and each node has the law of the number of tools taken below it, up to the budget.

A set is drawn from the root down: a node that holds c tools gives i of them to its left half with
probability left_i right_(c−i) / node_c. Nothing is rejected, and every term is ≥ 0. The tree costs
O(M B) once, M log B numbers of memory; a set O(B² log M).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsac import _loops
from jaxsac.gibbs._polynomial import convolve
from jaxsac.gibbs._problem import Groups
from jaxsac.gibbs._tail import products

_BATCH = 1 << 13  # slots that are drawn at a time
_WRITTEN_OUT = 3  # coefficients up to which a product is written out


class Tree(NamedTuple):
    """Levels from the leaves to the root, one behind the other: coefficient i of node k of level l
    is at offsets[l] + i · nodes[l] + k; the halves of node k are the nodes k and k + nodes[l] of
    the level below.
    """

    values: jax.Array
    offsets: np.ndarray  # [L]
    nodes: np.ndarray  # [L]
    degrees: np.ndarray  # [L]


def grow(chances: jax.Array, degree: int) -> Tree:
    """The tree over tools that are taken with probabilities `chances` [M]."""
    leaves = 1 << max(chances.shape[0] - 1, 0).bit_length()
    padded = jnp.concatenate([chances, jnp.zeros((leaves - chances.shape[0],), chances.dtype)])
    levels = [jnp.stack([1 - padded, padded])[: degree + 1]]
    while (half := levels[-1].shape[1] // 2) > 0:
        halves = levels[-1][:, :half], levels[-1][:, half:]
        levels.append(products(*halves, degree, _WRITTEN_OUT))
    sizes = np.array([level.shape for level in levels], np.int32)
    ends = np.cumsum(sizes[:, 0] * sizes[:, 1])
    values = jnp.concatenate([level.reshape(-1) for level in levels])
    return Tree(values, (ends - sizes.prod(1)).astype(np.int32), sizes[:, 1], sizes[:, 0] - 1)


def draw(key: jax.Array, tree: Tree, sizes: jax.Array, width: int) -> jax.Array:
    """Sets of the sizes [N], each ≤ width: int32 [N, width], padded with −1."""
    number = sizes.shape[0]
    batch = max(_BATCH // width, 1)
    if number <= batch:
        return _draw(key, tree, sizes, width)
    batches = -(-number // batch)  # what a batch works on stays in cache
    padded = jnp.pad(sizes, (0, batches * batch - number)).reshape(batches, batch)
    index = jnp.arange(batches, dtype=jnp.int32)
    sets = lax.map(
        lambda at: _draw(jax.random.fold_in(key, at[0]), tree, at[1], width), (index, padded)
    )
    return sets.reshape(-1, width)[:number]


def _draw(key: jax.Array, tree: Tree, sizes: jax.Array, width: int) -> jax.Array:
    offsets, nodes, degrees = (
        jnp.asarray(x, jnp.int32) for x in (tree.offsets, tree.nodes, tree.degrees)
    )
    slot = jnp.arange(width, dtype=jnp.int32)[None, :]
    inside = slot < sizes[:, None]

    def descend(step, state):
        # Slot by slot: its node, the number of slots in the node, and its place among them.
        node, count, place = state
        level = len(tree.nodes) - 2 - step
        half, degree = nodes[level + 1], degrees[level]
        chance = uniform(jax.random.fold_in(key, step), node.shape, tree.values.dtype)
        chance = jnp.take_along_axis(chance, slot - place, axis=1)  # one for all slots of a node
        above = offsets[level + 1] + count * half + node
        target = chance * tree.values[above]
        least = jnp.maximum(count - degree, 0)

        def term(i):
            left = tree.values[offsets[level] + i * 2 * half + node]
            right = tree.values[offsets[level] + (count - i) * 2 * half + node + half]
            return jnp.where(i <= jnp.minimum(count, degree), left * right, 0)

        def add(carry):
            k, through, found, last = carry
            mass = term(least + k)
            through = through + mass
            last = jnp.where(mass > 0, least + k, last)
            found = jnp.where((found < 0) & (through > target), least + k, found)
            return k + 1, through, found, last

        def more(carry):
            k, _, found, _ = carry
            return jnp.any((found < 0) & (least + k <= jnp.minimum(count, degree)))

        none = jnp.full(node.shape, -1, jnp.int32)
        start = (jnp.int32(0), jnp.zeros_like(target), none, least)
        _, _, found, last = _loops.while_loop(more, add, start)
        left = jnp.where(found < 0, last, found)  # rounding: the last that is possible
        right = place >= left
        return (
            node + jnp.where(right, half, 0),
            jnp.where(right, count - left, left),
            place - jnp.where(right, left, 0),
        )

    count = jnp.where(inside, sizes[:, None], 0)
    start = (jnp.zeros_like(count), count, jnp.where(inside, slot, 0))
    node = _loops.fori_loop(0, len(tree.nodes) - 1, descend, start)[0]
    return jnp.where(inside, node, -1)


def split(
    key: jax.Array, own: jax.Array, factors: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of sets of the sizes [N]: the number of own tools [N], and of each group's [N, C], where the
    law of the own number is `own` [D + 1], and of the groups' `factors` [C, D + 1].
    """
    before = _loops.scan(lambda t, factor: (convolve(t, factor), t), own, factors)[1]
    degree = jnp.arange(own.shape[0], dtype=jnp.int32)[None, :]

    def step(left, entry):
        index, factor, before = entry
        others = left[:, None] - degree
        law = jnp.where(others >= 0, factor[None, :] * before[jnp.maximum(others, 0)], 0)
        number = jax.random.categorical(jax.random.fold_in(key, index), jnp.log(law), axis=1)
        number = number.astype(jnp.int32)
        return left - number, number

    index = jnp.arange(factors.shape[0], dtype=jnp.int32)
    own_number, numbers = _loops.scan(step, sizes, (index, factors, before), reverse=True)
    return own_number, numbers.T


def draw_alike(key: jax.Array, groups: Groups, numbers: jax.Array, first: jax.Array, width: int):
    """`numbers` [N, C] different tools of each group, uniformly, in the slots from `first` [N] on:
    int32 [N, width], −1 in all other slots. Floyd's algorithm, one slot after the other.
    """
    through = jnp.cumsum(numbers, axis=1)
    starts = jnp.cumsum(groups.counts, dtype=jnp.int32) - groups.counts
    slots = jnp.arange(width, dtype=jnp.int32)

    def step(slot, chosen):
        place = slot - first  # [N] among the groups' tools
        group = jnp.sum(through <= place[:, None], axis=1)
        live = (place >= 0) & (place < through[:, -1])
        group = jnp.minimum(group, groups.counts.shape[0] - 1)
        number = jnp.take_along_axis(numbers, group[:, None], axis=1)[:, 0]
        within = place - (jnp.take_along_axis(through, group[:, None], axis=1)[:, 0] - number)
        last = groups.counts[group] - number + within
        index = jax.random.randint(
            jax.random.fold_in(key, slot), place.shape, 0, jnp.maximum(last + 1, 1), jnp.int32
        )
        index = index + starts[group]
        again = jnp.any((chosen == index[:, None]) & (slots < slot)[None, :], axis=1)
        tool = jnp.where(again, last + starts[group], index)
        return chosen.at[:, slot].set(jnp.where(live, tool, -1))

    start = jnp.full((numbers.shape[0], width), -1, jnp.int32)
    return _loops.fori_loop(0, width, step, start)


def uniform(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Uniform numbers in (0, 1), in the middle of their cells: what is rarer than a cell is not
    drawn because a number happened to be 0.
    """
    return jax.random.uniform(key, shape, dtype) + float(jnp.finfo(dtype).eps) / 2
