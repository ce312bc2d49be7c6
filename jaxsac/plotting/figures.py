"""Plots: axes in, axes out. Matplotlib is imported inside the functions, and nothing here touches
its global state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxsac._arguments import anything, arguments, integer, real, size

_AXES, _LABEL = anything("axes of matplotlib"), anything("a text")
_COLORS = {
    "sparse": "#c1272d",
    "dense": "#1f5fa8",
    "popularity": "#6b6b6b",
    "retrieval": "#b08900",
    "retrieval + popularity": "#4f8a3d",
}
_OTHERS = ("#7a4fa0", "#008080", "#a0522d", "#333333")


def _color_of(name: str, number: int = 0) -> str:
    """The colour of a method in every plot; `number` picks one for a name that has none."""
    return _COLORS.get(name, _OTHERS[number % len(_OTHERS)])


@arguments(
    axes=_AXES,
    sizes=integer("S", low=1),
    curves=anything("{name: (means [S], errors [S])}"),
    label=_LABEL,
)
def learning_curves(
    axes: Any,
    sizes: Sequence[int],
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    label: str,
) -> Any:
    """Means and standard errors against training records, a line per method: `curves[name] =
    (means, errors)`, each [len(sizes)].

    A size at which a method was not measured is NaN. `label` names the quantity. Draws on
    matplotlib `axes` and returns them.
    """
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    sizes = np.asarray(sizes).tolist()
    for number, (name, (means, errors)) in enumerate(curves.items()):
        shift = 1 + 0.012 * (
            number - (len(curves) - 1) / 2
        )  # side by side: bars of equal sizes would hide each other
        positions, (means, errors) = (
            np.asarray(sizes, float) * shift,
            np.asarray((means, errors), float),
        )
        axes.errorbar(
            positions,
            means,
            yerr=errors,
            marker="o",
            markersize=4,
            capsize=2.5,
            linewidth=1.6,
            label=name,
            color=_color_of(name, number),
        )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{number:,}" for number in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_tick_params(which="minor", length=0)
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training records")
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    _open_frame(axes)
    return axes


@arguments(
    axes=_AXES,
    names=anything("texts [n]"),
    values=real("n", low=-np.inf),
    limit=size(1),
    label=_LABEL,
)
def strengths(
    axes: Any,
    names: Sequence[str],
    values: Sequence[float],
    *,
    limit: int = 30,
    label: str = "strength",
) -> Any:
    """Horizontal bars of the `limit` largest values, largest on top, named. Draws on matplotlib
    `axes` and returns them.
    """
    if len(names) != len(values):
        raise ValueError(f"names must be one for each of the {len(values)} values.")
    order = np.argsort(-np.asarray(values, float), kind="stable")[:limit]
    shown = [names[index] for index in order]
    positions = np.arange(len(shown))
    axes.barh(positions, [values[index] for index in order], color=_COLORS["sparse"], height=0.7)
    axes.set_yticks(
        positions,
        [name if len(name) <= 44 else f"…{name[-43:]}" for name in map(str, shown)],
        fontsize=7,
    )
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)
    _open_frame(axes)
    return axes


@arguments(axes=_AXES, scores=anything("{name: (mean, error)}"), label=_LABEL)
def methods(axes: Any, scores: Mapping[str, tuple[float, float]], label: str) -> Any:
    """A point with its standard error per method, best on top: `scores[name] = (mean, error)`.
    Draws on `axes` and returns them.
    """
    order = sorted(scores, key=lambda name: scores[name][0])
    for position, name in enumerate(order):
        mean, error = scores[name]
        axes.errorbar(
            [mean], [position], xerr=[error], marker="o", capsize=3, color=_color_of(name, position)
        )
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)
    _open_frame(axes)
    return axes


@arguments(axes=_AXES, shown=real("n", low=0, high=1), used=real("n", low=0, high=1))
def reliability(axes: Any, shown: Sequence[float], used: Sequence[float]) -> Any:
    """The shares that came true against the probabilities that were shown, by bins, with the
    diagonal on which they agree. Draws on matplotlib `axes` and returns them.
    """
    axes.plot([0, 1], [0, 1], color=_COLORS["popularity"], linewidth=1, linestyle=":")
    axes.plot(shown, used, marker="o", markersize=4, linewidth=1.6, color=_COLORS["sparse"])
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability shown", ylabel="share used")
    axes.grid(alpha=0.3)
    _open_frame(axes)
    return axes


def _open_frame(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
