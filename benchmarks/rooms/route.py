"""The main job: stage times, metrics and the certificate of `jaxsac route` on the mined log, from a
cold start; with `--logs`, routers and plain baselines on folds of logs.
"""

import pathlib
import time

from benchmarks.cases import route_logs
from benchmarks.harness import Options, Report
from jaxsac.route import job, log_file, mine, report

SMOKE_PACKAGES = ("equinox", "optax", "tqdm")


def run(options: Options) -> Report:
    """One run of the whole job, mined anew and compiled anew: times are single measurements, the
    rest is deterministic for given versions.

    The policies are fitted in float32 whatever the dtype asked for; the metrics are computed in
    it.
    """
    if options.logs is not None:
        return _logs(options, options.logs)
    processes = 1 if options.smoke else 2
    start = time.perf_counter()
    log = mine.mine(SMOKE_PACKAGES if options.smoke else tuple(mine.PACKAGES), processes=processes)
    mining = time.perf_counter() - start
    settings = job.Options(curve=(200,)) if options.smoke else job.Options(processes=2)
    result = job.run(log, settings, progress=options.show_progress)
    summary = result.summary
    seconds = {"mining": mining} | summary["seconds"]
    counts = summary["log"] | summary["split"]
    found = summary["certificate"]
    return Report(
        tables={
            "log": [
                {
                    name: counts[name]
                    for name in (
                        "records",
                        "tools",
                        "tools_used_once",
                        "budget",
                        "longer_records_dropped",
                        "training",
                        "test",
                        "hash",
                    )
                }
            ],
            "quality on held-out modules (mean and group-bootstrap standard error)": [
                {"method": name} | _cells(values)
                for name, values in summary["result"]["methods"].items()
            ],
            "paired differences": [
                {"pair": name} | _cells(values)
                for name, values in summary["result"]["differences"].items()
            ],
            "learning curve": [_point(point) for point in summary["learning_curve"]],
            "certificate": [
                {
                    "status": found["status"],
                    "relative gap": found["relative_gap"],
                    "lam / lam_max": found["lam"] / found["lam_max"],
                    "kept": len(summary["kept"]),
                    "support": sum(row["by"] == "context" for row in summary["kept"]),
                    "of": summary["result"]["tools"],
                }
            ],
            "seconds": [
                {"stage": name, "seconds": value}
                for name, value in [*seconds.items(), ("in all", sum(seconds.values()))]
            ],
        },
        notes=[
            f"Python {counts['python']}; "
            + ", ".join(f"{name} {version}" for name, version in counts["packages"].items())
        ],
        plot=lambda figure: report.draw(figure, result),
    )


def _logs(options: Options, folder: pathlib.Path) -> Report:
    """Every log.jsonl of a folder and of those in it, packed or not, in five folds by group."""
    paths = sorted(folder.glob("log.jsonl*")) + sorted(folder.glob("*/log.jsonl*"))
    tables, figures = {}, []
    for path in paths:
        log, name = log_file.read_log(path), path.parent.name
        folds = route_logs.folds(log, 1 if options.smoke else 5)
        results, groups = [], []
        for number, fold in enumerate(options.progress(folds, name)):
            found, own = route_logs.run(fold, options.peers_python)
            results.append(found)
            groups += fold.parts.test.groups
            figures.append({"log": name, "fold": number, "tools": len(fold.names)} | own)
        for scope, words in (("seen", "tools seen in training"), ("all", "the whole catalogue")):
            heading = f"{name}, {words}: {len(log.sets):,} records, B = {folds[0].budget}"
            tables[heading] = route_logs.rows_of(results, groups, scope)
    notes = [
        "A method's settings are the best by nDCG@B on validation records; means over the records"
        " of all folds' tests, standard errors by a bootstrap over groups; a paired difference"
        " below its standard error is a tie.",
        f"{len(paths)} logs under {folder.name}",
    ]
    return Report(tables=tables | {"the deployed router": figures}, notes=notes)


def _cells(values) -> dict[str, float]:
    return {
        f"{metric} {part}": values[metric][part] for metric in values for part in ("mean", "error")
    }


def _point(point) -> dict[str, float]:
    row = {"records": point["records"], "tools": point["tools"], "kept": point["tuning"]["kept"]}
    for name in ("router", "dense", "popularity"):
        for metric in ("ndcg", "recall", "log_likelihood"):
            row[f"{name} {metric}"] = point["methods"][name][metric]["mean"]
    difference = point["differences"]["router - dense"]
    return (
        row
        | {f"router - dense {metric}": difference[metric]["mean"] for metric in difference}
        | {"error (ndcg)": difference["ndcg"]["error"]}
    )
