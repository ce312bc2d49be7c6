"""The law of a policy over budgeted sets, with numpy alone: probabilities of tools, and draws."""

from typing import NamedTuple

import numpy as np

_FAINT = 80.0


class Exploration(NamedTuple):
    """What `Router.explore` chose."""

    tools: list[str]  # names
    propensity: float  # the chance with which it chose them, in (0, 1]


def inclusion(
    scores: np.ndarray, numbers: np.ndarray, budget: int, *, exactly: bool = False
) -> np.ndarray:
    """P(tool is chosen) of some tools under π(a) ∝ exp Σ_{j ∈ a} z_j, |a| ≤ B (or = B).

    The others enter as one polynomial Π (1 + w t) cut at degree B, made by pairs; each of the tools
    asked for then as the product of all the rest. O(M B²).
    """
    budget = min(budget, int(np.isfinite(scores).sum()))
    if not budget or not numbers.size:
        return np.zeros(numbers.size)
    unit = float(scores.max()) if exactly else max(float(scores.max()), 0.0)
    # Nothing that is _FAINT nats below the best is ever seen; so no product underflows.
    weight = np.where(scores > -np.inf, np.exp(np.maximum(scores - unit, -_FAINT)), 0.0)
    # The polynomials of all other tools by columns, halved in number until one is left.
    many = np.append(np.delete(weight, numbers), 0.0)
    many = np.stack([np.ones(many.size), many])
    while many.shape[1] > 1:
        if many.shape[1] % 2:
            many = np.concatenate([many, np.eye(len(many), 1)], axis=1)
        many = _product(*np.split(many, 2, axis=1), budget)
    whole, own = np.zeros(budget + 1), weight[numbers]
    whole[: len(many)] = many[:, 0]
    before, after = _products(whole, own), _products(np.eye(1, budget + 1)[0], own[::-1])
    others = _product(before[:, :-1], after[:, -2::-1], budget)
    degrees = np.arange(budget + 1)
    size = np.where((degrees == budget) | (not exactly), degrees * unit, -np.inf)
    allowed = np.exp(size - size.max())
    return own * (allowed[1:] @ others[:-1]) / (allowed @ before[:, -1])


def _product(a: np.ndarray, b: np.ndarray, degree: int) -> np.ndarray:
    """Products of polynomials, by columns, cut at a degree."""
    out = np.zeros((min(len(a) + len(b) - 1, degree + 1), a.shape[1]))
    for power, row in enumerate(a):
        part = out[power : power + len(b)]
        part += row * b[: len(part)]
    return out


def _products(first: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """By columns: `first`, and its products with the first, the first two, ... of 1 + factor t."""
    columns = [first]
    for factor in factors:
        columns.append(columns[-1].copy())
        columns[-1][1:] += factor * columns[-2][:-1]
    return np.stack(columns, axis=1)


def mode(scores: np.ndarray, budget: int, exactly: bool) -> np.ndarray:
    """The most probable set under the law of `inclusion`: the B best tools, of those with z > 0
    where fewer than B are allowed; ties to the first.
    """
    best = np.argsort(-scores, kind="stable")[:budget]
    return best[scores[best] > (-np.inf if exactly else 0.0)]


def draw(
    generator: np.random.Generator, scores: np.ndarray, rate: float, budget: int, exactly: bool
) -> tuple[list[int], float]:
    """The mode or, at the rate, a set drawn from the law of `inclusion`; with its chance.

    The size first, then tool after tool, from the polynomials of those not yet looked at. O(M B).
    """
    open_ = np.flatnonzero(np.isfinite(scores))
    budget = min(budget, open_.size)
    unit = float(scores.max()) if budget else 0.0
    weight = np.exp(np.maximum(scores[open_] - unit, -_FAINT))
    after = _products(np.eye(1, budget + 1)[0], weight[::-1])[:, ::-1]
    degrees = np.arange(budget + 1)
    size = np.where((degrees == budget) | (not exactly), degrees * unit, -np.inf)
    law = after[:, 0] * np.exp(size - size.max())
    best = chosen = sorted(mode(scores, budget, exactly).tolist())
    if generator.random() < rate:
        left = int(generator.choice(budget + 1, p=law / law.sum()))
        chosen = []
        for number, tool in enumerate(open_):
            share = (
                weight[number] * after[left - 1, number + 1] / after[left, number] if left else 0
            )
            if generator.random() < share:
                chosen.append(int(tool))
                left -= 1
    picked = np.isin(open_, chosen)
    mass = np.prod(weight[picked]) * np.exp(size[len(chosen)] - size.max()) / law.sum()
    return chosen, float((1 - rate) * (chosen == best) + rate * mass)
