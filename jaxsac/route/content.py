"""What a router is made of, and how it is saved: plain arrays and JSON."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxsac.route.embeddings import Embedded
from jaxsac.route.reading import Reading
from jaxsac.route.texts import Index, Vocabulary


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


def pack(content: Content) -> tuple[Mapping[str, np.ndarray], dict[str, Any]]:
    """Arrays and metadata, as they are saved."""
    reading, weights = content.reading, content.weights
    arrays: dict[str, np.ndarray] = {
        **{f"weights.{name}": np.asarray(value) for name, value in weights._asdict().items()},
        "costs": np.asarray(content.costs, float),
        "first": _smallest(reading.first),
        "used": _smallest(reading.used),
        "worth": reading.worth,
        "anchors": _smallest(reading.anchors),
    }
    arrays |= {f"terms.{n}": one.weight for n, one in enumerate(reading.vocabularies)}
    indices = {"tools.0": reading.tools[0], "tools.1": reading.tools[1], "names": reading.names}
    indices |= {"taught": reading.taught}
    indices |= {f"records.{n}": one for n, one in enumerate(reading.records)}
    for label, index in indices.items():
        arrays |= {f"{label}.{name}": _smallest(getattr(index, name)) for name in ("start", "row")}
        arrays[f"{label}.value"] = index.value.astype(np.float16)
    metadata = {
        "names": content.names,
        "terms": [list(one.number) for one in reading.vocabularies],
        "analysers": [one.analyser for one in reading.vocabularies],
        "channels": list(reading.channel_names),
    }
    if reading.embedded is not None:
        parts = reading.embedded._asdict()
        arrays |= {
            f"embedded.{name}": part.astype(np.float64 if name == "centre" else np.float16)
            for name, part in parts.items()
        }
    if content.reference is not None:
        arrays["reference"] = content.reference
    return arrays, metadata


def unpack(arrays: Mapping[str, np.ndarray], given: dict[str, Any]) -> Content:
    """What `pack` packed.

    Raises: ValueError, KeyError, TypeError or IndexError for anything else.
    """
    names, terms = given["names"], given["terms"]

    def index(label: str, size: int, count: int) -> Index:
        start, row, value = (arrays[f"{label}.{name}"] for name in ("start", "row", "value"))
        start, row = start.astype(np.int64), row.astype(np.int32)
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
        index("taught", len(names), counts[0]),
        (index("records.0", records, counts[0]), index("records.1", records, counts[1])),
        arrays["first"].astype(np.int64),
        arrays["used"].astype(np.int64),
        arrays["worth"],
        arrays["anchors"].astype(np.int64),
        _embedded(arrays, len(names), records),
    )
    if given["channels"] != list(reading.channel_names):
        raise ValueError("its channels are those of another version")
    parts = {name: arrays[f"weights.{name}"] for name in Weights._fields}
    parts |= {"budget": int(parts["budget"]), "exactly": bool(parts["exactly"])}
    weights = Weights(**parts)  # pyright: ignore[reportArgumentType]
    shapes = weights.intercept.shape == weights.cold.shape == arrays["costs"].shape
    if not shapes or weights.intercept.shape != (len(names),) or weights.budget < 1:
        raise ValueError("weights, costs and names are not of equal number")
    if not all(np.isfinite(np.asarray(part)).all() for part in weights):
        raise ValueError("weights are not finite")
    if reading.worth.shape != (records,) or not np.isfinite(reading.worth).all():
        raise ValueError(f"its records' worth is not {records} numbers")
    anchors, shape = reading.anchors, (weights.tools.size, reading.anchors.size)
    if anchors.size and not 0 <= anchors.min() <= anchors.max() < records:
        raise ValueError(f"anchors are no positions of {records} records")
    if weights.coef.shape != shape or weights.channels.size != len(reading.channel_names):
        raise ValueError("coefficients do not fit the tools")
    reference = arrays.get("reference")
    if reference is not None and reference.shape != (3, 3):
        raise ValueError("what it was held to is incomplete")
    return Content(names, arrays["costs"].tolist(), reading, weights, reference)


def _smallest(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers ≥ 0 in the fewest bytes that hold them."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def _embedded(arrays: Mapping[str, np.ndarray], tools: int, records: int) -> Embedded | None:
    parts = [arrays.get(f"embedded.{name}") for name in Embedded._fields]
    if any(part is None for part in parts):
        return None
    centre, *units = parts
    found = Embedded(np.asarray(centre, float), *(np.asarray(one, np.float32) for one in units))
    size = found.centre.size
    shapes = [(size,), (tools, size), (records, size)]
    if [part.shape for part in found] != shapes:
        raise ValueError("embeddings are not of the number of its tools and records")
    if not all(np.isfinite(part).all() for part in found):
        raise ValueError("embeddings are not finite")
    return found
