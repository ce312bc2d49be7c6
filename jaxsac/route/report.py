"""What a run says: a text for people, a figure, and a page of the diagnosis."""

import base64
import html
import io
from collections.abc import Iterable
from typing import Any

from jaxsac import plotting
from jaxsac.route.job import Result

_SHOWN = 30  # tools in the text
_DRAWN = 40  # tools in the figure
_LISTED = 5  # confusions, misses, tools never found
_LEARNT = "router", "dense", "popularity"  # at every point of the learning curve


def text(result: Result) -> str:
    """The report as text."""
    parts = _log, _router, _kept, _quality, _curve, _certificate, _times
    return "\n\n".join(filter(None, (part(result.summary) for part in parts))) + "\n"


def figure(result: Result) -> Any:
    """A matplotlib figure: learning curves and final quality on the left, the strongest tools on
    the right.
    """
    drawing = _empty_figure(13, 8)
    draw(drawing, result)
    return drawing


def draw(drawing: Any, result: Result) -> None:
    """Draw a result on a matplotlib figure."""
    summary = result.summary
    budget, methods = summary["log"]["budget"], summary["result"]["methods"]
    points = summary["learning_curve"]
    left, right = drawing.subfigures(1, 2, width_ratios=(1, 1.05))
    router = summary.get("router")
    above, below, *last = left.subplots(2 + bool(router), 1).tolist()
    curves = {}
    for name in _LEARNT:
        scores = [point["methods"][name]["ndcg"] for point in points]
        curves[name] = [row["mean"] for row in scores], [row["error"] for row in scores]
    sizes = [point["records"] for point in points]
    plotting.learning_curves(above, sizes, curves, f"nDCG@{budget} on held-out groups")
    support, total = _support(summary), summary["result"]["tools"]
    above.set_title(f"{support} of {total:,} tools look at the context", loc="left", fontsize=11)
    recall = {name: values["recall"] for name, values in methods.items()}
    bars = {name: (value["mean"], value["error"]) for name, value in recall.items()}
    plotting.methods(below, bars, f"recall@{budget}")
    below.set_title("all methods, all training records", loc="left", fontsize=11)
    if router:
        bins = router["probabilities"]["bins"]
        shown, used = [one["shown"] for one in bins], [one["used"] for one in bins]
        plotting.reliability(last[0], shown, used)
        last[0].set_title("probabilities of the router", loc="left", fontsize=11)
    rows = [row for row in summary["kept"] if row["by"] == "context"]
    names, strengths = [row["tool"] for row in rows], [row["strength"] for row in rows]
    axes, label = right.subplots(), "spread of the score over contexts (nats)"
    plotting.strengths(axes, names, strengths, limit=_DRAWN, label=label)
    shown = f"the strongest {min(_DRAWN, len(rows))} of {len(rows)}"
    axes.set_title(f"{shown} tools that look at the context", loc="left", fontsize=11)


def page(result: Result) -> str:
    """The diagnosis as one HTML page: the text of `control.Diagnosis.report`, and its plot inside
    the page.
    """
    assert result.diagnosis is not None
    drawing = _empty_figure(9, 5)
    result.diagnosis.plot(drawing.subplots())
    image = io.BytesIO()
    drawing.savefig(image, dpi=110, format="png")
    text = html.escape(result.diagnosis.report(result.names))
    source = base64.b64encode(image.getvalue()).decode()
    title = "Can the kept tools be trusted?"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<h1>{title}</h1>"
        "<p>Of the penalised fit of a sparse policy over the contexts' features, on the training"
        " records.</p>"
        f'<pre style="white-space: pre-wrap">{text}</pre>'
        f'<img alt="uses and gradient norms" src="data:image/png;base64,{source}"></html>\n'
    )


def _empty_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    return drawing


def _log(summary: dict[str, Any]) -> str:
    log, parts = summary["log"], summary["split"]
    source = log["source"]
    if source == "mined":
        packages = ", ".join(f"{name} {version}" for name, version in log["packages"].items())
        files = f"{log['files']:,} installed sources"
        source = f"mined from {files}: Python {log['python']}, {packages}"
    once = log["tools_used_once"] / log["tools"]
    weighted = log.get("objective") == "weighted"
    chose = log.get("records_without_choice_dropped", 0)
    without = f", {chose:,} that were shown only what they used" * bool(chose)
    by_utility = "\nutility   records of higher utility count more" * weighted
    unseen = parts["test_uses_of_unseen_tools"] / max(parts["test_uses"], 1)
    return f"""\
log       {source}
records   {log["records"]:,} with {log["tools"]:,} tools ({once:.0%} used once), hash {log["hash"]}
budget    {log["budget"]} tools a record; \
{log["longer_records_dropped"]:,} longer records dropped{without}{by_utility}
split     {parts["training"]:,} training, {parts["validation"]:,} validation, \
{parts["test"]:,} test records, by groups ({parts["training_groups"]:,}, \
{parts["validation_groups"]:,}, {parts["test_groups"]:,}); \
{parts["tools_seen_in_training"]:,} tools in training
unseen    {unseen:.1%} of the test's uses are of tools that training never saw: left out below \
({parts["test_records_judged"]:,} test records have a tool that it saw)"""


def _router(summary: dict[str, Any]) -> str:
    """What is deployed for a log of texts."""
    found = summary.get("router")
    if found is None:
        return ""
    budget, shown = summary["log"]["budget"], found["probabilities"]
    recalls = ", ".join(
        f"{name.removeprefix('recall')} {_cell(value, 3)}"
        for name, value in found.items()
        if name.startswith("recall@")
    )
    weights = ", ".join(f"{name} {value:.1f}" for name, value in found["channels"].items())
    none, never = found["none"], found["never_found"]
    shares = none["none_without_tools"], none["none_shuffled"]
    kinds = "of the records without tools", "of shuffled texts"
    said = " and ".join(f"{a:.0%} {b}" for a, b in zip(shares, kinds, strict=True) if a is not None)
    said = said and f'; it says "none of them" to {said}'
    tried = {row["support"]: row["validation"] for row in summary["result"]["tuning"]["router"]}
    path = ", ".join(f"{value:.3f} with {support}" for support, value in tried.items())
    rare = _listed(f"{row['tool']} ({row['uses']})" for row in never)
    lines = f"""\
router    {found["tools"]:,} tools, {found["tools_without_records"]:,} of them without records
recall    {recalls} of all logged tools, those that training never saw too
nDCG      @{budget} {_cell(found[f"ndcg@{budget}"], 3)}
shown     calibration error of the probabilities {shown["calibration_error"]:.3f} ± \
{shown["bootstrap_error"]:.3f}
none      at_least={none["at_least"]:.2g} answers {none["answered"]:.0%} of the records with \
tools{said}
channels  {weights} (nats per unit)
sparsity  the log teaches {found["support"]:,} tools more than the texts say; log-likelihood of a \
validation record: {path}
never     {len(never):,} of the {found["tools_used"]:,} tools that the test used never came among \
the first {budget}{rare}""".split("\n")
    if value := found["value"]:
        by = f"{value['records']:,} records with a propensity"
        if value["method"] == "direct":
            by = "by a model of the utility, no propensities: its own error is not in the interval"
        lines.append(
            f"value     {value['value']:.3f} [{value['lower']:.3f}, {value['upper']:.3f}] had sets"
            f" been drawn from the router's law, {value['of_the_log']:.3f} as they were ({by};"
            f" {value['effective_groups']:.0f} effective groups)"
        )
        if value["few"]:
            lines.append("too few   effective groups: the value says little")
    if found["too_small"]:
        groups = f"{found['groups']} group{'s' * (found['groups'] != 1)}"
        lines.append(
            f"too small the test records with tools are of {groups}: the figures here say little"
            " about other records"
        )
    for title, rows in (("confusions", found["confusions"]), ("misses", found["misses"])):
        lines += [f"{title} (more in report.json)"] * bool(rows)
        for row in rows[:_LISTED]:
            if title == "confusions":
                row = f"{row['times']} times {row['instead']} in place of {row['used']}"
            else:
                used, offered = ", ".join(row["used"]), ", ".join(row["offered"])
                row = f"{row['text']!r}: used {used}; offered {offered}"
            lines.append(f"  {row}")
    return "\n".join(lines)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f", ... and {len(names) - _LISTED} more" * (len(names) > _LISTED)
    return f": {', '.join(names[:_LISTED])}{more}" if names else ""


def _kept(summary: dict[str, Any]) -> str:
    kept, total = summary["kept"], summary["result"]["tools"]
    texts = "router" in summary
    by_context = [row for row in kept if row["by"] == "context"]
    by_intercept = [row["tool"] for row in kept if row["by"] == "intercept"]
    lines = [
        f"support   for {len(kept)} of {total:,} tools the log taught more than the texts say"
        if texts
        else f"kept      {len(kept)} of {total:,} tools: {len(by_context)} look at the context"
        f" (the support), {len(by_intercept)} enter a top {summary['log']['budget']} by their"
        " frequency alone"
    ]
    if cost := sum(row["cost"] for row in kept):
        lines.append(f"cost      {cost:g} for the kept tools")
    if families := sorted({row["family"] for row in kept if row["family"]}):
        share = summary["certificate"].get("family_share", 0.0)
        said = f"; {share:g} of the penalty is on families" if share else ""
        lines.append(f"families  {len(families):,}{_listed(families)}{said}")
    width = max([len(row["tool"]) for row in kept[:_SHOWN]] + [4])
    lines += ["", f"  {'tool':{width}}  strength  uses", f"  {'-' * width}  --------  ----"]
    lines += [
        f"  {row['tool']:{width}}  {row['strength']:8.2f}  {row['uses']:4d}"
        for row in by_context[:_SHOWN]
    ]
    if len(by_context) > _SHOWN:
        lines.append(f"  ... and {len(by_context) - _SHOWN} more in report.json")
    if by_intercept:
        lines.append(f"  by frequency alone{_listed(by_intercept)}")
    lines.append(
        "  strength: root mean square of the tool's score over training contexts, beside its"
        " intercept, in nats"
    )
    return "\n".join(lines)


def _quality(summary: dict[str, Any]) -> str:
    budget, result = summary["log"]["budget"], summary["result"]
    columns = {f"nDCG@{budget}": 14, f"recall@{budget}": 14, "log-likelihood": 17}
    heads = " ".join(f"{name:>{width}}" for name, width in columns.items())
    router = f"router ({_support(summary)} tools)"
    methods, differences = result["methods"], result["differences"]
    return "\n".join(
        [
            "held-out groups, mean ± standard error (bootstrap over groups)",
            "",
            f"  {'method':24} {heads}",
            *(
                f"  {router if name == 'router' else name:24} {_cells(values)}"
                for name, values in methods.items()
            ),
            "",
            "  paired differences",
            *(f"  {name:32} {_cells(values)}" for name, values in differences.items()),
        ]
    )


def _curve(summary: dict[str, Any]) -> str:
    budget, heads = summary["log"]["budget"], " ".join(f"{name:>18}" for name in _LEARNT)
    lines = [
        f"learning curve: nDCG@{budget} (log-likelihood) by training records; each tuned anew, all"
        " judged on the same test records",
        "",
        f"  {'records':>7} {'tools':>6} {'kept':>5} {heads} {'router - dense':>17}",
    ]
    for point in summary["learning_curve"]:
        cells = []
        for name in _LEARNT:
            values = point["methods"][name]
            likelihood = f"({values['log_likelihood']['mean']:.2f})"
            cells.append(f"{values['ndcg']['mean']:.3f} {likelihood}")
        difference = _cell(point["differences"]["router - dense"]["ndcg"], 3)
        lines.append(
            f"  {point['records']:7,} {point['tools']:6,} {point['tuning']['kept']:5} "
            + " ".join(f"{cell:>18}" for cell in cells)
            + f" {difference:>17}"
        )
    lines.append(
        "  log-likelihoods are over the tools that each training set has seen: compare them within"
        " a line only"
    )
    return "\n".join(lines)


def _certificate(summary: dict[str, Any]) -> str:
    found = summary["certificate"]
    tools = summary.get("router", summary["result"])["tools"]
    line = (
        f"certificate  {found['status']}: duality gap {found['relative_gap']:.1e} of the null"
        f" objective over all {tools:,} tools, lam = {found['lam']:.3g}"
        f" = {found['lam'] / found['lam_max']:.3f} lam_max"
    )
    if "router" in summary:
        return line
    refit = "no ridge" if found["ridge"] is None else f"ridge {found['ridge']:g}"
    return (
        f"{line}\n             (of the penalised fit that chose the support; its kept tools were"
        f" then refitted with {refit})"
    )


def _support(summary: dict[str, Any]) -> int:
    return sum(row["by"] == "context" for row in summary["kept"])


def _times(summary: dict[str, Any]) -> str:
    seconds = summary["seconds"]
    parts = ", ".join(f"{name} {number:.1f}" for name, number in seconds.items())
    return f"seconds   {parts}; in all {sum(seconds.values()):.1f}"


def _cells(values: dict[str, dict[str, float]]) -> str:
    likelihood = _cell(values.get("log_likelihood"), 2)
    return f"{_cell(values['ndcg'], 3):>14} {_cell(values['recall'], 3):>14} {likelihood:>17}"


def _cell(value: dict[str, float] | None, digits: int) -> str:
    return "" if value is None else f"{value['mean']:.{digits}f} ± {value['error']:.{digits}f}"
