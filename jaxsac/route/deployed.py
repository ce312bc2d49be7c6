"""The router that an agent calls: numpy alone, from a saved folder or from tool descriptions."""

import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsac import _checks, _files
from jaxsac._arguments import arguments, record
from jaxsac.route import monitoring
from jaxsac.route.inclusion import Exploration, draw, inclusion
from jaxsac.route.monitoring import Monitoring
from jaxsac.route.reading import CHANNELS, LEARNT, Reading
from jaxsac.route.texts import Index, Vocabulary, fit_vocabulary, index_of
from jaxsac.route.tool_file import read_tools

KIND, FILE = "jaxsac.Router", "router.npz"
_DEFAULT_WEIGHTS = (9.0, 9.0, 6.0, 0.0, 0.0)  # of CHANNELS, before there is a log
_DEFAULT_OFFSET = -9.0
_DEFAULT_BUDGET = 5


class Choice(NamedTuple):
    """A tool that a router chose."""

    tool: str  # its name
    score: float  # z, in nats
    probability: float  # that it is among the tools used


class Explanation(NamedTuple):
    """Why a tool has its score: the parts add up to it.

    * `tool`, `score`: as in `Choice`.
    * `channels`: nats by channel.
    * `learnt`: nats of what the log taught beyond the channels; `constant`: of the tool's own.
    * `records`: numbers of the nearest records of the training log that use it, nearest first.
    """

    tool: str
    score: float
    channels: dict[str, float]
    learnt: float
    constant: float
    records: list[int]


class Weights(NamedTuple):
    """Scores of M tools: z_j = Σ_c w_c r_c(j) + ⟨α_j, k⟩ + b_j, k the similarities to m anchors;
    and the sets that may be chosen.

    * `channels` w [C]; `tools` int [k], `coef` α [k, m]; `intercept` b [M].
    * `cold`: bool [M], tools that no record used, for which learnt channels do not count.
    * `calibration`: slope and constant of the shown log odds.
    * `budget` B; `exactly`: sets have exactly B tools.
    """

    channels: np.ndarray
    tools: np.ndarray
    coef: np.ndarray
    intercept: np.ndarray
    cold: np.ndarray
    calibration: np.ndarray
    budget: int
    exactly: bool


class Content(NamedTuple):
    """What a router is made of: names and costs (≥ 0, in the user's unit) of its M tools, how they
    look at a text, the weights of what they see, and how it did on held-out records (see
    `jaxsac.route.monitoring`; None before there is a log).
    """

    names: list[str]
    costs: list[float]
    reading: Reading
    weights: Weights
    reference: np.ndarray | None = None


class Router:
    """Chooses tools for a text: `router("plot a histogram", top=5)`.

    Made by `Router.load`, from the folder that `jaxsac route --out` wrote, or by
    `Router.from_tools`, from descriptions alone. A call takes numpy and nothing else.
    """

    @arguments(on_host=True, content=record(Content))
    def __init__(self, content: Content) -> None:
        self.content = content
        self.names, self.reading, self.weights = content.names, content.reading, content.weights
        self.costs = np.asarray(content.costs, float)
        self._position = {name: number for number, name in enumerate(self.names)}
        self._coef = np.asarray(self.weights.coef, np.float32)
        silent = (LEARNT[:, None] > 0) & self.weights.cold
        self._strength = self.weights.channels[:, None] * ~silent

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> "Router":
        """The router of a folder that `jaxsac route --out` wrote for a log of texts.

        Raises: `jaxsac.FileError` for anything else.
        """
        path = pathlib.Path(folder) / FILE
        try:
            arrays, given = _files.load(path, KIND)
        except OSError as error:
            raise _files.FileError(
                f"{path}: cannot be read ({error.strerror}): Router.load takes the folder that"
                " `jaxsac route --out` wrote for a log of texts."
            ) from None
        try:
            return _unpacked(arrays, given)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise _files.FileError(f"{path}: inconsistent ({error}).") from None

    @classmethod
    def from_tools(cls, tools: Any) -> "Router":
        """A router before there is a log: similarity to the tools' texts at fixed weights.

        * `tools`: the path of a tools file, or its content: {"name": {"description": "text",
          "cost": 1.0, "family": "name", "inputSchema": {...}}}; an MCP `tools/list` answer; or a
          list of OpenAI tool definitions.

        Its probabilities are those of the scores, not calibrated. Raises: `LogError` (a ValueError)
        for anything else.
        """
        known = read_tools(tools)
        names = list(known)
        _checks.require(bool(names), "tools names no tool.")
        about = [known[name].text(name) for name in names]
        vocabularies = tuple(fit_vocabulary(kind, about) for kind in ("words", "pieces"))
        counts = [len(vocabulary.number) for vocabulary in vocabularies]
        vectors = [[one.vector(text) for text in about] for one in vocabularies]
        reading = Reading(
            vocabularies,  # pyright: ignore[reportArgumentType]
            tuple(map(index_of, vectors, counts)),  # pyright: ignore[reportArgumentType]
            index_of([vocabularies[0].vector(name) for name in names], counts[0]),
            tuple(index_of([], count) for count in counts),  # pyright: ignore[reportArgumentType]
            np.zeros(1, int),
            np.zeros(0, np.int32),
            np.zeros(0, int),
        )
        weights = Weights(
            channels=np.array(_DEFAULT_WEIGHTS),
            tools=np.zeros(0, int),
            coef=np.zeros((0, 0), np.float32),
            intercept=np.full(len(names), _DEFAULT_OFFSET),
            cold=np.ones(len(names), bool),
            calibration=np.array([1.0, 0.0]),
            budget=min(_DEFAULT_BUDGET, len(names)),
            exactly=False,
        )
        return cls(Content(names, [known[name].cost for name in names], reading, weights))

    def save(self, folder: str | pathlib.Path) -> None:
        """Write `router.npz` into an existing folder: numbers and names, none of the log's texts
        (but the words and pieces of words that occur in them).
        """
        _files.save(pathlib.Path(folder) / FILE, KIND, *_packed(self))

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        top: int | None = None,
        at_least: float = 0.0,
        always: Collection[str] = (),
        available: Collection[str] | None = None,
        cost_limit: float | None = None,
    ) -> Any:
        """The tools for a text, best first: a list of `Choice`; a list of lists for several texts.

        * `top`: so many tools, as many as there are; None is the budget of the log's records.
        * `at_least`: leaves out tools below this probability; an empty list is "none of them". 0
          leaves out none.
        * `always`: names of tools that are in every answer; they count in `top`.
        * `available`: names of the tools to choose from; None is all.
        * `cost_limit` ≥ 0: tools are taken in order while their costs fit together.

        Raises: ValueError for unknown names, a text without characters, numbers out of range.
        """
        if not isinstance(text, str):
            _checks.require(np.iterable(text), f"text must be a text or several, got {text!r}.")
            given: dict[str, Any] = {"top": top, "at_least": at_least, "always": always}
            given |= {"available": available, "cost_limit": cost_limit}
            return [self(one, **given) for one in text]
        _checks.require(bool(text.strip()), "text is empty: there is nothing to route.")
        top = self.weights.budget if top is None else top
        _checks.require(top >= 0 and top == int(top), f"top must be a whole number ≥ 0, got {top}.")
        _checks.require(0 <= at_least <= 1, f"at_least must be in [0, 1], got {at_least}.")
        limit = np.inf if cost_limit is None else cost_limit
        _checks.require(limit >= 0, f"cost_limit must be ≥ 0, got {cost_limit}.")
        must = self._numbers("always", always)
        scores = self._masked(self.scores(text), available, must)
        count = max(min(int(top), int(np.isfinite(scores).sum())), must.size)
        rest = _best(scores, scores.size if cost_limit is not None else count + must.size)
        rest = rest[~np.isin(rest, must)] if must.size else rest
        probability = self._probability(scores, np.concatenate([must, rest[:count]]))
        chosen, spent = list(must), float(self.costs[must].sum())
        for number in rest:
            if len(chosen) >= count or not np.isfinite(scores[number]):
                break
            if spent + self.costs[number] > limit:
                continue
            if number not in probability:
                probability |= self._probability(scores, np.array([number]))
            if probability[number] < at_least:
                break
            chosen.append(number)
            spent += self.costs[number]
        chosen.sort(key=lambda number: -scores[number])
        return [Choice(self.names[n], float(scores[n]), probability[n]) for n in chosen]

    def scores(self, text: str) -> np.ndarray:
        """z [M] of all tools, in the order of `names`, in nats."""
        return self._parts(text)[0]

    def explain(self, text: str, *, top: int | None = None) -> list[Explanation]:
        """What the best tools' scores are made of: which channel spoke, which past records."""
        scores, channels, learnt, near = self._parts(text)
        count = self.weights.budget if top is None else top
        weight: dict[int, float] = {}
        for records, values in map(self.reading.nearest, near):
            for number, value in zip(records.tolist(), values.tolist(), strict=True):
                weight[number] = weight.get(number, 0.0) + value
        nearest = sorted(weight, key=lambda number: -weight[number])
        first, used = self.reading.first, self.reading.used
        return [
            Explanation(
                tool=self.names[n],
                score=float(scores[n]),
                channels=dict(zip(CHANNELS, channels[:, n].tolist(), strict=True)),
                learnt=float(learnt[n]),
                constant=float(self.weights.intercept[n]),
                records=[t for t in nearest if n in used[first[t] : first[t + 1]]],
            )
            for n in np.argsort(-scores, kind="stable")[:count]
        ]

    def monitor(self, texts: Sequence[str], tools: Sequence[Collection[str]]) -> Monitoring:
        """Whether the router should learn again: records since it was learnt against held-out ones
        of its log.

        * `texts`, `tools`: of n ≥ 2 records, the text and the names of the tools used.

        Returns: a `Monitoring`, with the share of the used tools among the first B, how near the
        texts are to those learnt from, and the share of uses that are of tools without records;
        each beside what it was, with the Welch statistic of the change (Welch 1947). `learn_again`
        says that one got worse by more than three standard errors.

        Raises: ValueError for a router that has not learnt from a log, or lists of unequal length.
        """
        reference = self.content.reference
        _checks.require(reference is not None, "monitor needs a router that learnt from a log.")
        _checks.require(
            len(texts) == len(tools) >= 2,
            f"monitor needs two records or more, got {len(texts)} texts and {len(tools)} sets.",
        )
        return monitoring.compare(np.asarray(reference), monitoring.seen(self, texts, tools))

    def explore(
        self, text: str, seed: int, *, rate: float = 0.1, available: Collection[str] | None = None
    ) -> Exploration:
        """The B best tools or, at a given rate, a set drawn from the router's law π(a) ∝ exp Σ z:
        what is logged with its `propensity` lets the report judge the next router's law, at weights
        ≤ 1 / rate.

        * `seed` ≥ 0: decides the draw; another one for every call.
        * `rate` in [0, 1]: the share of draws.
        * `available`: as in a call.

        Returns: an `Exploration`, whose propensity is (1 − rate) [a is the best] + rate π(a).
        """
        _checks.require(0 <= rate <= 1, f"rate must be in [0, 1], got {rate}.")
        _checks.require(seed >= 0, f"seed must be ≥ 0, got {seed}.")
        scores = self._masked(self.scores(text), available)
        best = self._numbers("best", [one.tool for one in self(text, available=available)])
        given = self.weights.budget, self.weights.exactly
        tools, chance = draw(np.random.default_rng(seed), scores, best, rate, *given)
        return Exploration([self.names[number] for number in tools], chance)

    def _masked(self, scores: np.ndarray, available: Collection[str] | None, always=()):
        if available is None:
            return scores
        possible = [*self._numbers("available", available), *always]
        masked = np.full(scores.size, -np.inf)
        masked[possible] = scores[possible]
        return masked

    def _parts(self, text: str):
        """Scores [M], nats by channel [C, M], nats learnt beside them [M], and the cosines with all
        records.
        """
        vectors = self.reading.vectors(text)
        near = self.reading.near(vectors)
        channels = self.reading.channels(self.reading.about(vectors), near) * self._strength
        learnt = np.zeros(len(self.names))
        learnt[self.weights.tools] = self._coef @ self.reading.similarities(near)
        return channels.sum(0) + learnt + self.weights.intercept, channels, learnt, near

    def _probability(self, scores: np.ndarray, numbers: np.ndarray) -> dict[int, float]:
        """That these tools are used, calibrated."""
        slope, constant = self.weights.calibration
        p = inclusion(scores, numbers, self.weights.budget, exactly=self.weights.exactly)
        p = np.clip(p, 1e-12, 1 - 1e-12)
        shown = 1 / (1 + np.exp(-(slope * np.log(p / (1 - p)) + constant)))
        return dict(zip(numbers.tolist(), shown.tolist(), strict=True))

    def _numbers(self, what: str, names: Collection[str]) -> np.ndarray:
        unknown = [name for name in names if name not in self._position]
        _checks.require(not unknown, f"{what}: no tool is named {', '.join(map(str, unknown))}.")
        return np.array([self._position[name] for name in dict.fromkeys(names)], int)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """The largest scores' positions, at least `count` of them, largest first, ties in order."""
    if count < scores.size:
        bound = np.partition(scores, scores.size - max(count, 1))[scores.size - max(count, 1)]
        found = np.flatnonzero(scores >= bound)
        return found[np.argsort(-scores[found], kind="stable")]
    return np.argsort(-scores, kind="stable")


def _packed(router: Router) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """Arrays and metadata."""
    reading, weights = router.reading, router.weights
    arrays: dict[str, np.ndarray] = {
        **{f"weights.{name}": np.asarray(value) for name, value in weights._asdict().items()},
        "costs": router.costs,
        "first": reading.first,
        "used": reading.used,
        "anchors": reading.anchors,
    }
    arrays |= {f"terms.{n}": one.weight for n, one in enumerate(reading.vocabularies)}
    indices = {"tools.0": reading.tools[0], "tools.1": reading.tools[1], "names": reading.names}
    indices |= {f"records.{n}": one for n, one in enumerate(reading.records)}
    for label, index in indices.items():
        arrays |= {f"{label}.{name}": getattr(index, name) for name in ("start", "row", "value")}
    metadata = {
        "names": router.names,
        "terms": [list(one.number) for one in reading.vocabularies],
        "analysers": [one.analyser for one in reading.vocabularies],
        "channels": list(CHANNELS),
    }
    if router.content.reference is not None:
        arrays["reference"] = router.content.reference
    return arrays, metadata


def _unpacked(arrays: Mapping[str, np.ndarray], given: dict[str, Any]) -> Router:
    if given["channels"] != list(CHANNELS):
        raise ValueError("its channels are those of another version")
    names, terms = given["names"], given["terms"]

    def index(label: str, size: int, count: int) -> Index:
        start, row, value = (arrays[f"{label}.{name}"] for name in ("start", "row", "value"))
        fits = start.shape == (count + 1,) and row.shape == value.shape == (start[-1],)
        fits = fits and (np.diff(start) >= 0).all() and start[0] == 0
        if not fits or (row.size and not 0 <= row.min() <= row.max() < size):
            raise ValueError(f"{label} is no index of {size} texts")
        return Index.of(start, row, value, size)

    counts, records = [len(one) for one in terms], arrays["first"].size - 1
    vocabularies = tuple(
        Vocabulary(kind, {term: n for n, term in enumerate(one)}, arrays[f"terms.{n}"])
        for n, (kind, one) in enumerate(zip(given["analysers"], terms, strict=True))
    )
    reading = Reading(
        vocabularies,  # pyright: ignore[reportArgumentType]
        (index("tools.0", len(names), counts[0]), index("tools.1", len(names), counts[1])),
        index("names", len(names), counts[0]),
        (index("records.0", records, counts[0]), index("records.1", records, counts[1])),
        arrays["first"],
        arrays["used"],
        arrays["anchors"],
    )
    parts = {name: arrays[f"weights.{name}"] for name in Weights._fields}
    parts |= {"budget": int(parts["budget"]), "exactly": bool(parts["exactly"])}
    weights = Weights(**parts)  # pyright: ignore[reportArgumentType]
    shapes = weights.intercept.shape == weights.cold.shape == arrays["costs"].shape
    if not shapes or weights.intercept.shape != (len(names),) or weights.budget < 1:
        raise ValueError("weights, costs and names are not of equal number")
    if not all(np.isfinite(np.asarray(part)).all() for part in weights):
        raise ValueError("weights are not finite")
    anchors, shape = reading.anchors, (weights.tools.size, reading.anchors.size)
    if anchors.size and not 0 <= anchors.min() <= anchors.max() < records:
        raise ValueError(f"anchors are no positions of {records} records")
    if weights.coef.shape != shape or weights.channels.shape != LEARNT.shape:
        raise ValueError("coefficients do not fit the tools")
    reference = arrays.get("reference")
    if reference is not None and reference.shape != (3, 3):
        raise ValueError("what it was held to is incomplete")
    return Router(Content(names, arrays["costs"].tolist(), reading, weights, reference))
