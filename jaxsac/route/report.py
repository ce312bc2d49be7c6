"""What a run says: a text for people, a figure, and the folder that holds both with the numbers and
the router.
"""

import base64
import html
import io
import json
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

from jaxsac import plotting
from jaxsac.route.job import Result
from jaxsac.route.log_file import LogError
from jaxsac.route.router import save_router

REPORT, NUMBERS, PLOT, DIAGNOSIS = "report.txt", "report.json", "route.png", "diagnosis.html"
SHOWN = 30


def text(result: Result) -> str:
    """The report as text."""
    summary = result.summary
    return (
        "\n\n".join(
            [
                _log(summary),
                _kept(summary),
                _quality(summary),
                _curve(summary),
                _certificate(summary),
                _times(summary),
            ]
        )
        + "\n"
    )


def figure(result: Result) -> Any:
    """A matplotlib figure: learning curves and final quality on the left, the strongest tools on
    the right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(drawing)
    draw(drawing, result)
    return drawing


def draw(drawing: Any, result: Result) -> None:
    """Draw a result on a matplotlib figure."""
    summary = result.summary
    budget = summary["log"]["budget"]
    left, right = drawing.subfigures(1, 2, width_ratios=(1, 1.05))
    above, below = left.subplots(2, 1, height_ratios=(1.35, 1))
    points = summary["learning_curve"]
    scores = {
        name: [point["methods"][name]["ndcg"] for point in points]
        for name in ("dense", "sparse", "popularity")
    }
    curves = {
        name: ([score["mean"] for score in values], [score["error"] for score in values])
        for name, values in scores.items()
    }
    plotting.learning_curves(
        above, [point["records"] for point in points], curves, f"nDCG@{budget} on held-out groups"
    )
    above.set_title(
        f"{summary['result']['tuning']['kept']} of {summary['result']['tools']:,} tools do it",
        loc="left",
        fontsize=11,
    )
    methods = summary["result"]["methods"]
    plotting.methods(
        below,
        {
            name: (values["recall"]["mean"], values["recall"]["error"])
            for name, values in methods.items()
        },
        f"recall@{budget}",
    )
    below.set_title("all methods, all training records", loc="left", fontsize=11)
    kept = [row for row in summary["kept"] if row["by"] == "context"]
    axes = right.subplots()
    plotting.strengths(
        axes,
        [row["tool"] for row in kept],
        [row["strength"] for row in kept],
        limit=40,
        label="spread of the score over contexts (nats)",
    )
    axes.set_title(
        f"the strongest {min(40, len(kept))} of {len(kept)} tools that look at the context",
        loc="left",
        fontsize=11,
    )


def page(result: Result) -> str:
    """The diagnosis as one HTML page: the text of `control.Diagnosis.report`, and its plot inside
    the page.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    assert result.diagnosis is not None
    drawing = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(drawing)
    result.diagnosis.plot(drawing.subplots())
    image = io.BytesIO()
    drawing.savefig(image, dpi=110, format="png")
    text = html.escape(result.diagnosis.report(result.names))
    source = base64.b64encode(image.getvalue()).decode()
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Can the kept tools be trusted?</title>'
        "<h1>Can the kept tools be trusted?</h1>"
        "<p>Of the penalised fit that chose the support, on the training records.</p>"
        f'<pre style="white-space: pre-wrap">{text}</pre><img alt="uses and gradient norms" src="data:image/png;base64,{source}"></html>\n'
    )


def check_out(folder: pathlib.Path) -> None:
    """Raise LogError where a run could not be put at `folder`: something else is there. An earlier
    run's folder may be replaced.
    """
    if not folder.parent.is_dir():
        raise LogError(
            f"--out {folder}: the folder {folder.parent} does not exist: create it, or choose another."
        )
    if (
        folder.exists()
        and not (folder / NUMBERS).is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise LogError(
            f"--out {folder}: holds something else than an earlier run: choose another name."
        )


def write(folder: pathlib.Path, result: Result) -> list[pathlib.Path]:
    """Put report, numbers, plot and router at `folder`: written elsewhere first, then renamed
    whole, so that no run is ever half there.
    """
    check_out(folder)
    scratch = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        (scratch / REPORT).write_text(text(result), encoding="utf-8")
        (scratch / NUMBERS).write_text(
            json.dumps(_plain(result.summary), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        figure(result).savefig(scratch / PLOT, dpi=130)
        save_router(scratch, result.router)
        if result.diagnosis is not None:
            (scratch / DIAGNOSIS).write_text(page(result), encoding="utf-8")
        scratch.chmod(0o755)
        old = None
        if folder.exists():
            old = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
            os.replace(folder, old / folder.name)
        os.replace(scratch, folder)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sorted(folder.iterdir())


def _log(summary: dict[str, Any]) -> str:
    log, parts = summary["log"], summary["split"]
    if log["source"] == "mined":
        packages = ", ".join(f"{name} {version}" for name, version in log["packages"].items())
        source = (
            f"mined from {log['files']:,} installed sources: Python {log['python']}, {packages}"
        )
    else:
        source = log["source"]
    once = log["tools_used_once"] / log["tools"]
    unseen = parts["test_uses_of_unseen_tools"] / max(parts["test_uses"], 1)
    return "\n".join(
        [
            f"log       {source}",
            f"records   {log['records']:,} with {log['tools']:,} tools ({once:.0%} used once), hash {log['hash']}",
            f"budget    {log['budget']} tools a record; {log['longer_records_dropped']:,} longer records dropped",
            f"split     {parts['training']:,} training, {parts['validation']:,} validation, {parts['test']:,} test records, by groups "
            f"({parts['training_groups']:,}, {parts['validation_groups']:,}, {parts['test_groups']:,}); "
            f"{parts['tools_seen_in_training']:,} tools in training",
            f"unseen    {unseen:.1%} of the test's uses are of tools that training never saw: left out below "
            f"({parts['test_records_judged']:,} test records have a tool that it saw)",
        ]
    )


def _kept(summary: dict[str, Any]) -> str:
    kept, total = summary["kept"], summary["result"]["tools"]
    by_context = [row for row in kept if row["by"] == "context"]
    by_intercept = [row for row in kept if row["by"] == "intercept"]
    lines = [
        f"kept      {len(kept)} of {total:,} tools: {len(by_context)} look at the context (the support), "
        f"{len(by_intercept)} enter a top {summary['log']['budget']} by their frequency alone"
    ]
    cost = sum(row["cost"] for row in kept)
    if cost:
        lines.append(f"cost      {cost:g} for the kept tools")
    families = sorted({row["family"] for row in kept if row["family"]})
    if families:
        share = summary["certificate"].get("family_share", 0.0)
        lines.append(
            f"families  {', '.join(families)}"
            + (f": {share:g} of the penalty is on families" if share else "")
        )
    width = max([len(row["tool"]) for row in kept[:SHOWN]] + [4])
    lines += ["", f"  {'tool':{width}}  strength  uses", f"  {'-' * width}  --------  ----"]
    lines += [
        f"  {row['tool']:{width}}  {row['strength']:8.2f}  {row['uses']:4d}"
        for row in by_context[:SHOWN]
    ]
    if len(by_context) > SHOWN:
        lines.append(f"  ... and {len(by_context) - SHOWN} more in {NUMBERS}")
    if by_intercept:
        lines.append(f"  by frequency alone: {', '.join(row['tool'] for row in by_intercept)}")
    lines.append(
        "  strength: root mean square of the tool's score over training contexts, beside its intercept, in nats"
    )
    return "\n".join(lines)


def _quality(summary: dict[str, Any]) -> str:
    budget, result = summary["log"]["budget"], summary["result"]
    lines = [
        "held-out groups, mean ± standard error (bootstrap over groups)",
        "",
        f"  {'method':24} {'nDCG@' + str(budget):>14} {'recall@' + str(budget):>14} {'log-likelihood':>17}",
    ]
    for name, values in result["methods"].items():
        shown = f"{name} ({result['tuning']['kept']} tools)" if name == "sparse" else name
        lines.append(
            f"  {shown:24} {_cell(values['ndcg'], 3):>14} {_cell(values['recall'], 3):>14} {_cell(values.get('log_likelihood'), 2):>17}"
        )
    lines += ["", "  paired differences"]
    for name, values in result["differences"].items():
        lines.append(
            f"  {name:32} {_cell(values['ndcg'], 3):>14} {_cell(values['recall'], 3):>14} {_cell(values.get('log_likelihood'), 2):>17}"
        )
    return "\n".join(lines)


def _curve(summary: dict[str, Any]) -> str:
    budget = summary["log"]["budget"]
    lines = [
        f"learning curve: nDCG@{budget} (log-likelihood) by training records; each tuned anew, all judged on the same test records",
        "",
        f"  {'records':>7} {'tools':>6} {'kept':>5} {'sparse':>18} {'dense':>18} {'popularity':>18} {'sparse - dense':>17}",
    ]
    for point in summary["learning_curve"]:
        cells = [
            f"{point['methods'][name]['ndcg']['mean']:.3f} ({point['methods'][name]['log_likelihood']['mean']:.2f})"
            for name in ("sparse", "dense", "popularity")
        ]
        difference = _cell(point["differences"]["sparse - dense"]["ndcg"], 3)
        lines.append(
            f"  {point['records']:7,} {point['tools']:6,} {point['tuning']['kept']:5} "
            + " ".join(f"{cell:>18}" for cell in cells)
            + f" {difference:>17}"
        )
    lines.append(
        "  log-likelihoods are over the tools that each training set has seen: compare them within a line only"
    )
    return "\n".join(lines)


def _certificate(summary: dict[str, Any]) -> str:
    found = summary["certificate"]
    return (
        f"certificate  {found['status']}: duality gap {found['relative_gap']:.1e} of the null objective "
        f"over all {summary['result']['tools']:,} tools, "
        f"lam = {found['lam']:.3g} = {found['lam'] / found['lam_max']:.3f} lam_max\n"
        f"             (of the penalised fit that chose the support; its kept tools were then refitted with "
        f"{'no ridge' if found['ridge'] is None else 'ridge ' + format(found['ridge'], 'g')})"
    )


def _times(summary: dict[str, Any]) -> str:
    return (
        "seconds   "
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in summary["seconds"].items())
        + f"; in all {sum(summary['seconds'].values()):.1f}"
    )


def _cell(value: dict[str, float] | None, digits: int) -> str:
    return "" if value is None else f"{value['mean']:.{digits}f} ± {value['error']:.{digits}f}"


def _plain(value: Any) -> Any:
    """JSON without NaN: a number that does not exist is null."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
