"""Good calls of the public functions, for the test that makes them wrong."""

from matplotlib.figure import Figure


def axes():
    return Figure().add_subplot()


CALLS = {
    "plotting.learning_curves": lambda: {
        "axes": axes(),
        "sizes": [100, 200],
        "curves": {"sparse": ([0.1, 0.2], [0.01, 0.02])},
        "label": "recall",
    },
    "plotting.strengths": lambda: {
        "axes": axes(),
        "names": ["a", "b"],
        "values": [0.5, 2.0],
        "limit": 5,
        "label": "strength",
    },
    "plotting.reliability": lambda: {"axes": axes(), "shown": [0.1, 0.6], "used": [0.2, 0.5]},
    "plotting.methods": lambda: {
        "axes": axes(),
        "scores": {"sparse": (0.5, 0.1)},
        "label": "recall",
    },
}
