"""Two independent answers: enumeration of all sets (any budget), and the log-space programme over
tools in extended precision.
"""

import itertools

import numpy as np


def feasible_sets(num_tools, budget, exactly=False, costs=None):
    price = [1] * num_tools if costs is None else list(costs)
    sets = (
        s for size in range(num_tools + 1) for s in itertools.combinations(range(num_tools), size)
    )
    return [
        s
        for s in sets
        if (sum(price[j] for j in s) == budget if exactly else sum(price[j] for j in s) <= budget)
    ]


class Enumeration:
    """The policy by its list of sets."""

    def __init__(self, z, budget, exactly=False, costs=None):
        self.z = np.asarray(z, np.float64)
        self.sets = feasible_sets(len(self.z), budget, exactly, costs)
        self.totals = np.array([sum(self.z[j] for j in s) for s in self.sets], float)
        self.log_partition = log_sum_exp(self.totals)
        with np.errstate(invalid="ignore"):
            self.log_probabilities = np.where(
                self.totals > -np.inf, self.totals - self.log_partition, -np.inf
            )
        self.probabilities = np.exp(self.log_probabilities)
        self.member = np.array([[j in s for j in range(len(self.z))] for s in self.sets]).reshape(
            len(self.sets), len(self.z)
        )
        self.marginals = self.probabilities @ self.member
        used = self.probabilities > 0
        self.entropy = -np.sum(self.probabilities[used] * self.log_probabilities[used])

    def kl(self, other):
        used = self.probabilities > 0
        return np.sum(
            self.probabilities[used] * (self.log_probabilities - other.log_probabilities)[used]
        )

    def rows(self, width):
        return np.array([list(s) + [-1] * (width - len(s)) for s in self.sets], np.int32).reshape(
            len(self.sets), width
        )


def log_sum_exp(values):
    top = np.max(values, initial=-np.inf)
    return top if np.isneginf(top) else top + np.log(np.sum(np.exp(values - top)))


def programme(z, budget, exactly=False):
    """(log Z, marginals) by the log-space programme, forwards and backwards, in long double around
    a centre.
    """
    z = np.asarray(z, np.longdouble)
    finite = np.sort(z[np.isfinite(z)])[::-1]
    centre = finite[min(budget, len(finite) - 1)] if len(finite) else np.longdouble(0)
    z = z - centre
    available = np.flatnonzero(z > -np.inf)
    tables = [np.append(np.zeros(1, np.longdouble), np.full(budget, -np.inf))]
    for j in available:
        tables.append(
            np.append(tables[-1][0], np.logaddexp(tables[-1][1:], tables[-1][:-1] + z[j]))
        )
    degree = np.arange(budget + 1)
    last = np.where(degree == budget, tables[-1], -np.inf) if exactly else tables[-1]
    size = int(np.argmax(np.where(np.isneginf(last), -np.inf, last + degree * centre)))
    rest = log_sum_exp(last + (degree - size) * centre)
    marginals = np.zeros(len(z))
    if np.isneginf(rest):
        return -np.inf, marginals
    suffix = np.where((degree == budget) | (not exactly), (degree - size) * centre - rest, -np.inf)
    for position in range(len(available) - 1, -1, -1):
        j = available[position]
        marginals[j] = np.exp(log_sum_exp(suffix[1:] + z[j] + tables[position][:-1]))
        suffix = np.append(np.logaddexp(suffix[:-1], suffix[1:] + z[j]), suffix[-1])
    return float(size * centre + rest), marginals


def families(num_tools, budget, seed=0):
    """The inputs on which accuracy is promised, by name."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=num_tools)
    yield "normal", 5 * normal
    yield "ties", np.round(normal)
    yield "near ties", np.round(normal) + 1e-9 * rng.normal(size=num_tools)
    for constant in (0.0, -9.0, 1e4, -1e4):
        yield f"constant {constant:g}", np.full(num_tools, constant)
    for offset in (1e9, -1e9):
        yield f"offset {offset:g}", 5 * normal + offset
    huge = normal.copy()
    huge[num_tools // 3] = 1e4
    yield "one huge", huge
    masked = 5 * normal
    masked[::2] = -np.inf
    yield "half masked", masked
    few = 5 * normal
    few[budget - 1 :] = -np.inf
    yield "fewer than the budget", few
    yield "none available", np.full(num_tools, -np.inf)
    yield "two levels", np.where(np.arange(num_tools) % 2, 0.0, -10.0)
    yield "giants", np.where(np.arange(num_tools) < max(budget // 2, 1), 100.0, 0.0)
    heavy = np.full(num_tools, -60.0)
    heavy[: budget + 2] = 0.1 * normal[: budget + 2]
    yield "little more than the budget matters", heavy
    yield "falling", -np.arange(num_tools, dtype=float)
    yield "small", normal - np.log(num_tools)
    yield "Cauchy", rng.standard_cauchy(num_tools)


class Law:
    """The law over sets of tools with scores z [M] over the temperature, by their list."""

    def __init__(self, z, budget, exactly=False, at_least=0, costs=None, given=()):
        price = np.ones(len(z), int) if costs is None else np.asarray(costs)
        held = {int(j) for j in given if j >= 0}
        least = budget if exactly else at_least
        self.sets = []
        for bits in range(1 << len(z)):
            one = frozenset(j for j in range(len(z)) if bits >> j & 1)
            spent = sum(int(price[j]) for j in one)
            if held <= one and least <= spent <= budget:
                self.sets.append(one)
        self.member = np.array([[j in s for j in range(len(z))] for s in self.sets], float)
        with np.errstate(invalid="ignore"):
            totals = np.where(self.member > 0, np.asarray(z, float), 0).sum(1)
        self.log_partition = log_sum_exp(totals)
        self.log_probabilities = totals - self.log_partition
        self.probabilities = np.exp(self.log_probabilities)
        self.marginals = self.probabilities @ self.member
        self.pairs = self.member.T @ (self.probabilities[:, None] * self.member)
        self.centred = self.member - self.marginals
        self.covariance = self.centred.T @ (self.probabilities[:, None] * self.centred)
        used = self.probabilities > 0
        self.entropy = -np.sum(self.probabilities[used] * self.log_probabilities[used])

    def third(self, v):
        """The third cumulant, contracted with v once."""
        weighted = self.probabilities * (self.centred @ v)
        return self.centred.T @ (weighted[:, None] * self.centred)

    def kl(self, other):
        used = self.probabilities > 0
        difference = self.log_probabilities[used] - other.log_probabilities[used]
        return np.sum(self.probabilities[used] * difference)

    def size_law(self, length):
        sizes = self.member.sum(1).astype(int)
        return np.bincount(sizes, self.probabilities, minlength=length)[:length]

    def of(self, one):
        return self.log_probabilities[self.sets.index(frozenset(one))]
