"""The main job: stage times, metrics and the certificate of `jaxsac route` on the mined log, from a
cold start.
"""

import time

from benchmarks.harness import Options, Report
from jaxsac.route import job, mine, report

SMOKE_PACKAGES = ("equinox", "optax", "tqdm")


def run(options: Options) -> Report:
    """One run of the whole job, mined anew and compiled anew: times are single measurements, the
    rest is deterministic for given versions.

    The dense policy, popularity and the metrics do not depend on the dtype asked for; the sparse
    fit computes in it.
    """
    processes = 1 if options.smoke else 2
    start = time.perf_counter()
    log = mine.mine(SMOKE_PACKAGES if options.smoke else tuple(mine.PACKAGES), processes=processes)
    mining = time.perf_counter() - start
    if options.dtype == "float32":
        note = "sparse fit in float32: the certificate's tolerance is 1e-4"
    else:
        note = "sparse fit in float64: the certificate's tolerance is 1e-6"
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
            note,
            f"Python {counts['python']}; "
            + ", ".join(f"{name} {version}" for name, version in counts["packages"].items()),
        ],
        plot=lambda figure: report.draw(figure, result),
    )


def _cells(values) -> dict[str, float]:
    return {
        f"{metric} {part}": values[metric][part] for metric in values for part in ("mean", "error")
    }


def _point(point) -> dict[str, float]:
    row = {"records": point["records"], "tools": point["tools"], "kept": point["tuning"]["kept"]}
    for name in ("sparse", "dense", "popularity"):
        for metric in ("ndcg", "recall", "log_likelihood"):
            row[f"{name} {metric}"] = point["methods"][name][metric]["mean"]
    difference = point["differences"]["sparse - dense"]
    return (
        row
        | {f"sparse - dense {metric}": difference[metric]["mean"] for metric in difference}
        | {"error (ndcg)": difference["ndcg"]["error"]}
    )
