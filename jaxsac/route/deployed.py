"""The router that an agent calls: numpy alone, from a saved folder or from tool descriptions."""

import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxsac import _checks, _files
from jaxsac._arguments import arguments, function, record, size
from jaxsac.route import monitoring
from jaxsac.route.content import Content, Weights, pack, unpack
from jaxsac.route.embeddings import fit_embedded, numbers
from jaxsac.route.inclusion import Exploration, draw, inclusion
from jaxsac.route.monitoring import Monitoring
from jaxsac.route.reading import Reading
from jaxsac.route.texts import fit_vocabulary, index_of
from jaxsac.route.tool_file import Tool, read_tools

KIND, FILE = "jaxsac.Router", "router.npz"
_DEFAULT_WEIGHTS = 9.0, 9.0, 6.0, 9.0  # of the channels, before there is a log
_DEFAULT_OFFSET = -9.0
_DEFAULT_BUDGET = 5

Embed = Callable[[list[str]], Any]  # a user's encoder: from n texts to their embeddings [n, d]


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


class Router:
    """Chooses tools for a text: `router("plot a histogram", top=5)`.

    Made by `Router.load`, from the folder that `jaxsac route --out` wrote, or by
    `Router.from_tools`, from descriptions alone. A call takes numpy and nothing else (for several
    texts scipy's sparse products), but for the user's encoder `embed` where the router reads
    embeddings and none is given.
    """

    @arguments(on_host=True, content=record(Content), embed=function("texts -> array [n, d]"))
    def __init__(self, content: Content, embed: Embed | None = None) -> None:
        self.content, self.embed = content, embed
        self.names, self.reading, self.weights = content.names, content.reading, content.weights
        self.costs = np.asarray(content.costs, float)
        self._position = {name: number for number, name in enumerate(self.names)}
        self._coef = np.asarray(self.weights.coef, np.float32)
        silent = (self.reading.learnt[:, None] > 0) & self.weights.cold
        self._strength = self.weights.channels[:, None] * ~silent

    @classmethod
    def load(cls, folder: str | pathlib.Path, *, embed: Embed | None = None) -> "Router":
        """The router of a folder that `jaxsac route --out` wrote for a log of texts.

        * `embed`: the encoder that made the log's embeddings, from texts [n] to an array [n, d];
          without it a call must be given the embedding.

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
            return cls(unpack(arrays, given), embed)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise _files.FileError(f"{path}: inconsistent ({error}).") from None

    @classmethod
    def from_tools(cls, tools: Any, *, embed: Embed | None = None) -> "Router":
        """A router before there is a log: similarity to the tools' texts at fixed weights.

        * `tools`: the path of a tools file, or its content: {"name": {"description": "text",
          "cost": 1.0, "family": "name", "inputSchema": {...}, "embedding": [numbers]}}; an MCP
          `tools/list` answer; or a list of OpenAI tool definitions.
        * `embed`: an encoder, from texts [n] to an array [n, d], for tools without an embedding and
          for the texts of calls.

        Its probabilities are those of the scores, not calibrated. Raises: `LogError` (a ValueError)
        for anything else.
        """
        _checks.require(
            embed is None or callable(embed), f"embed must be a function of texts, got {embed!r}."
        )
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
            index_of([vocabularies[0].vector("")] * len(names), counts[0]),
            tuple(index_of([], count) for count in counts),  # pyright: ignore[reportArgumentType]
            np.zeros(1, int),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
            np.zeros(0, int),
            fit_embedded(np.zeros((0, 0)), _embeddings(known, about, embed)),
        )
        strength = np.array(_DEFAULT_WEIGHTS)[: reading.kinds + 1]
        weights = Weights(
            channels=np.append(strength, np.zeros(reading.kinds + 1)),
            tools=np.zeros(0, int),
            coef=np.zeros((0, 0), np.float32),
            intercept=np.full(len(names), _DEFAULT_OFFSET),
            cold=np.ones(len(names), bool),
            calibration=np.array([1.0, 0.0]),
            budget=min(_DEFAULT_BUDGET, len(names)),
            exactly=False,
        )
        return cls(Content(names, [known[name].cost for name in names], reading, weights), embed)

    def save(self, folder: str | pathlib.Path) -> None:
        """Write `router.npz` into an existing folder: numbers and names, none of the log's texts
        (but the words and pieces of words that occur in them).
        """
        _files.save(pathlib.Path(folder) / FILE, KIND, *pack(self.content))

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        top: int | None = None,
        at_least: float = 0.0,
        always: Collection[str] = (),
        available: Collection[str] | None = None,
        cost_limit: float | None = None,
        embedding: Any = None,
    ) -> Any:
        """The tools for a text, best first: a list of `Choice`; a list of lists for several texts.

        * `top`: so many tools, as many as there are; None is the budget of the log's records.
        * `at_least`: leaves out tools below this probability; an empty list is "none of them". 0
          leaves out none.
        * `always`: names of tools that are in every answer; they count in `top`.
        * `available`: names of the tools to choose from; None is all.
        * `cost_limit` ≥ 0: tools are taken in order while their costs fit together.
        * `embedding`: of the text, [d], or of n texts, [n, d]; None asks the router's encoder.

        Raises: ValueError for unknown names, a text without characters, numbers out of range, an
        embedding that is needed and not there, or there and not needed.
        """
        alone = isinstance(text, str)
        _checks.require(np.iterable(text), f"text must be a text or several, got {text!r}.")
        texts = [text] if alone else list(text)
        embeddings = self._embeddings(texts, embedding, alone)
        top = self._count(top)
        _checks.require(0 <= at_least <= 1, f"at_least must be in [0, 1], got {at_least}.")
        limit = np.inf if cost_limit is None else cost_limit
        _checks.require(limit >= 0, f"cost_limit must be ≥ 0, got {cost_limit}.")
        must = self._numbers("always", always)
        given = top, at_least, limit, must
        answers = [
            self._choose(self._masked(parts[0], available, must), *given)
            for parts in self._parts(texts, embeddings)
        ]
        return answers[0] if alone else answers

    def _choose(
        self, scores: np.ndarray, top: int, at_least: float, limit: float, must: np.ndarray
    ) -> list[Choice]:
        count = max(min(top, int(np.isfinite(scores).sum())), must.size)
        rest = _best(scores, scores.size if limit < np.inf else count + must.size)
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

    def _count(self, top: Any) -> int:
        return self.weights.budget if top is None else size().take("top", top)

    def scores(self, text: str, *, embedding: Any = None) -> np.ndarray:
        """z [M] of all tools, in the order of `names`, in nats; `embedding` as in a call."""
        return self._parts_of_one(text, embedding)[0]

    def explain(
        self, text: str, *, top: int | None = None, embedding: Any = None
    ) -> list[Explanation]:
        """What the best tools' scores are made of: which channel spoke, which past records."""
        scores, channels, learnt, near = self._parts_of_one(text, embedding)
        count = self._count(top)
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
                channels=dict(
                    zip(self.reading.channel_names, channels[:, n].tolist(), strict=True)
                ),
                learnt=float(learnt[n]),
                constant=float(self.weights.intercept[n]),
                records=[t for t in nearest if n in used[first[t] : first[t + 1]]],
            )
            for n in np.argsort(-scores, kind="stable")[:count]
        ]

    def monitor(
        self, texts: Sequence[str], tools: Sequence[Collection[str]], *, embedding: Any = None
    ) -> Monitoring:
        """Whether the router should learn again: records since it was learnt against held-out ones
        of its log.

        * `texts`, `tools`: of n ≥ 2 records, the text and the names of the tools used;
          `embedding` [n, d] as in a call.

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
        answers = self(list(texts), embedding=embedding)
        seen = monitoring.seen(self, texts, tools, answers)
        return monitoring.compare(np.asarray(reference), seen)

    def explore(
        self,
        text: str,
        seed: int,
        *,
        rate: float = 0.1,
        available: Collection[str] | None = None,
        embedding: Any = None,
    ) -> Exploration:
        """The most probable set of the router's law π(a) ∝ exp Σ z, |a| ≤ B or, at a given rate, a
        draw from it: what is logged with its `propensity` lets the report judge the next router's
        law.

        The most probable set has the B best tools, of those with z > 0 where the records of the log
        had different numbers of tools; so it may have few, or none.

        * `seed` ≥ 0: decides the draw; another one for every call.
        * `rate` in [0, 1]: the share of draws.
        * `available`, `embedding`: as in a call.

        Returns: an `Exploration`, of propensity (1 − rate) [a is the most probable] + rate π(a).
        """
        _checks.require(0 <= rate <= 1, f"rate must be in [0, 1], got {rate}.")
        seed = size().take("seed", seed)
        (embedding,) = self._embeddings([text], embedding, alone=True)
        scores = self._masked(self.scores(text, embedding=embedding), available)
        given = rate, self.weights.budget, self.weights.exactly
        tools, chance = draw(np.random.default_rng(seed), scores, *given)
        return Exploration([self.names[number] for number in tools], chance)

    def _masked(self, scores: np.ndarray, available: Collection[str] | None, always=()):
        if available is None:
            return scores
        possible = [*self._numbers("available", available), *always]
        masked = np.full(scores.size, -np.inf)
        masked[possible] = scores[possible]
        return masked

    def _embeddings(self, texts: list[str], given: Any, alone: bool) -> Any:
        """Of each text, none empty: what is given (for one that is `alone`, its own), or what the
        encoder makes of it, or None.
        """
        for text in texts:
            _checks.require(isinstance(text, str), f"text must be a text, got {text!r}.")
            _checks.require(bool(text.strip()), "text is empty: there is nothing to route.")
        if given is not None and alone:
            return [given]
        if given is None and self.embed is not None and self.reading.embedded is not None:
            given = self.embed(texts) if texts else None
        if given is None:
            return [None] * len(texts)
        given = numbers("embedding", given, 2)
        _checks.require(
            len(given) == len(texts),
            f"embedding must be of {len(texts)} texts, got {len(given)} rows.",
        )
        return given

    def _parts(self, texts: list[str], embeddings: Any):
        """Of each text: scores [M], nats by channel [C, M], nats learnt beside them [M], and the
        cosines with all records.
        """
        pairs = zip(texts, embeddings, strict=True)
        for about, near in self.reading.cosines([self.reading.vectors(*one) for one in pairs]):
            channels = self.reading.channels(about, near) * self._strength
            learnt = np.zeros(len(self.names))
            learnt[self.weights.tools] = self._coef @ self.reading.similarities(near)
            yield channels.sum(0) + learnt + self.weights.intercept, channels, learnt, near

    def _parts_of_one(self, text: str, embedding: Any):
        return next(self._parts([text], self._embeddings([text], embedding, alone=True)))

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


def _embeddings(known: dict[str, Tool], about: list[str], embed: Embed | None) -> list[Any]:
    """Of the tools: their own, or what the encoder makes of their texts, or ()."""
    found: list[Any] = [tool.embedding for tool in known.values()]
    missing = [number for number, one in enumerate(found) if not len(one)]
    if embed is not None and missing:
        made = numbers("what embed gives", embed([about[number] for number in missing]), 2)
        _checks.require(
            len(made) == len(missing),
            f"embed must give a row for each text, got {len(made)} for {len(missing)}.",
        )
        for number, one in zip(missing, made, strict=True):
            found[number] = one
    return found


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """The largest scores' positions, at least `count` of them, largest first, ties in order."""
    if count < scores.size:
        bound = np.partition(scores, scores.size - max(count, 1))[scores.size - max(count, 1)]
        found = np.flatnonzero(scores >= bound)
        return found[np.argsort(-scores[found], kind="stable")]
    return np.argsort(-scores, kind="stable")
