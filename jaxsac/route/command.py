"""`jaxsac route`: options, progress, files and printing around the job."""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxsac import _files
from jaxsac.route import job, mine, report
from jaxsac.route.log_file import LogError, RouteLog, read_log
from jaxsac.route.router import choose, load_router

DESCRIPTION = """\
Learn a sparse tool router from a log, and keep only the tools that matter.

With LOG: JSON lines, {"context": "text" or [numbers], "tools": ["name", ...], "utility": 1.0, "group": "session"}; the last two are
optional; a tools.json beside it may say more: {"name": {"description": "text", "cost": 1.0, "family": "name"}}.
Without LOG: a real log is mined from the installed Python sources; each documented function is a task, the library calls in its body
are the tools that it used.
With --policy: no learning; the saved router chooses tools for each TEXT."""

EXAMPLES = """\
examples:
  jaxsac route                                             mine a log, learn, report, write route-results/
  jaxsac route calls.jsonl --out router                    the same from your log
  jaxsac route calls.jsonl --update router --out router    learn again after the log has grown, from where it stood
  jaxsac route --policy router "plot a histogram"          choose tools for a new text
  jaxsac route --policy router --json - < texts.txt        ... for each line of a file, as JSON lines"""


def add_parser(commands: Any) -> None:
    """Add `route` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "route",
        help="learn a sparse tool router from a log of tool uses",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="LOG or TEXT",
        help='a log to learn from; with --policy, texts to route ("-": the lines of the input)',
    )
    parser.add_argument(
        "--tools",
        type=pathlib.Path,
        metavar="FILE",
        help="tool descriptions (default: tools.json beside the log, if there)",
    )
    parser.add_argument(
        "--budget",
        type=_whole,
        metavar="B",
        help="tools a record may use (default: the 95th percentile; longer records are dropped)",
    )
    parser.add_argument(
        "--lam",
        type=_penalty,
        default="validation",
        metavar="LAM",
        help='penalty: "validation" (default), "simulated", or a number > 0',
    )
    parser.add_argument(
        "--keep",
        type=_whole,
        default=job.DEFAULTS.keep,
        metavar="K",
        help="most tools to keep with --lam validation (default: %(default)s)",
    )
    parser.add_argument(
        "--family-share",
        type=_share,
        default=job.DEFAULTS.family_share,
        metavar="R",
        help="share of the penalty on families of tools, where the tools file names some; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--features",
        type=_whole,
        default=job.DEFAULTS.size,
        metavar="Q",
        help="features of a text (default: %(default)s)",
    )
    parser.add_argument("--no-curve", action="store_true", help="skip the learning curve (faster)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the learning curve's subsets and the simulated penalty (default: 0)",
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("route-results"),
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--policy",
        type=pathlib.Path,
        metavar="PATH",
        help="a router to use: the folder of an earlier --out, or its policy.npz",
    )
    parser.add_argument(
        "--cost-limit",
        type=_positive,
        metavar="C",
        help="with --policy: as many tools as fit this total cost, not the B best",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write diagnosis.html: can the kept tools be trusted? (learns 10 halves of the log too: minutes more)",
    )
    parser.add_argument(
        "--update",
        type=pathlib.Path,
        metavar="DIR",
        help="learn LOG (old and new lines) from an earlier --out: its features and penalty, warm",
    )
    parser.add_argument("--json", action="store_true", help="with --policy: one JSON object a line")
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="mine and compile anew, and keep nothing for the next run",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the command; returns the exit code. What a user can mend is one message on stderr and
    code 2.
    """
    # An application's choices, never the library's: certificates in float64, and compilations kept
    # for the next run.
    jax.config.update("jax_enable_x64", True)
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None and not given.no_cache:
        jax.config.update("jax_compilation_cache_dir", str(mine.cache_folder() / "compiled"))
    try:
        return _route(given) if given.policy is not None else _learn(given)
    except ModuleNotFoundError as error:
        print(
            f"jaxsac route: {error.name} is not installed: pip install 'jaxsac[route]'.",
            file=sys.stderr,
        )
    except (LogError, _files.FileError) as error:
        print(f"jaxsac route: {error}", file=sys.stderr)
    return 2


def _learn(given: argparse.Namespace) -> int:
    if len(given.inputs) > 1:
        raise LogError(
            f"one log at a time, got {len(given.inputs)}: join them, or use --policy PATH to route texts."
        )
    if given.json:
        raise LogError("--json goes with --policy.")
    if given.cost_limit is not None:
        raise LogError("--cost-limit goes with --policy.")
    earlier = None if given.update is None else _earlier(given)
    report.check_out(given.out)
    start = time.perf_counter()
    log = _log(given)
    reading = time.perf_counter() - start
    curve = () if given.no_curve or earlier is not None else job.DEFAULTS.curve
    numbers = given.budget, given.lam, given.keep, given.features, curve, given.seed, _processes()
    options = job.Options(
        *numbers, diagnose=given.report, family_share=given.family_share, earlier=earlier
    )
    result = job.run(log, options, _bar(given.quiet))
    times = {"mining" if log.notes["source"] == "mined" else "reading": reading} | result.summary[
        "seconds"
    ]
    result = result._replace(summary=result.summary | {"seconds": times})
    paths = report.write(given.out, result)
    print(report.text(result))
    print("wrote     " + ", ".join(str(path) for path in paths))
    print(f'next      jaxsac route --policy {given.out} "what you want done"')
    return 0


def _earlier(given: argparse.Namespace) -> job.Earlier:
    """The router of an earlier run, with its penalty and number of records."""
    if not given.inputs:
        raise LogError(
            "--update learns from a log: give the file that holds the old and the new lines."
        )
    router, path = load_router(given.update), given.update / report.NUMBERS
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
        return job.Earlier(
            router, float(numbers["certificate"]["lam"]), int(numbers["split"]["training"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise LogError(
            f"{path}: not the numbers of an earlier run: --update takes the folder that --out wrote."
        ) from None


def _log(given: argparse.Namespace) -> RouteLog:
    if given.inputs:
        return read_log(given.inputs[0], given.tools)
    if given.tools is not None:
        raise LogError("--tools describes the tools of a log: give the log too.")
    return mine.mine(
        processes=_processes(),
        progress=_bar(given.quiet),
        cache=None if given.no_cache else mine.cache_folder(),
    )


def _route(given: argparse.Namespace) -> int:
    if not given.inputs:
        raise LogError(
            '--policy needs texts to route: jaxsac route --policy PATH "what you want done".'
        )
    router = load_router(given.policy)
    texts = [
        line
        for text in given.inputs
        for line in ((line.strip() for line in sys.stdin) if text == "-" else [text])
        if line
    ]
    contexts: list[str] | np.ndarray = (
        texts
        if hasattr(router.features, "words")
        else np.asarray([_numbers(text) for text in texts])
    )
    for text, choices in zip(texts, choose(router, contexts, given.cost_limit), strict=True):
        if given.json:
            print(
                json.dumps(
                    {"context": text, "tools": [choice._asdict() for choice in choices]},
                    ensure_ascii=False,
                )
            )
            continue
        width = max((len(choice.tool) for choice in choices), default=0)
        print(text)
        for choice in choices:
            print(f"  {choice.tool:{width}}  {choice.probability:6.1%}")
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in json.loads(text)]
    except (TypeError, ValueError):
        raise LogError(
            f"this router's contexts are lists of numbers, such as [0.5, 1], got {text!r}."
        ) from None


def _processes() -> int:
    return min(
        8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def _bar(quiet: bool):
    if quiet:
        return lambda items, total, label: items
    from tqdm import tqdm

    def show(items: Iterable[Any], total: int, label: str) -> Iterable[Any]:
        return tqdm(items, total=total, desc=label, file=sys.stderr)

    return show


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return number


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return number


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"must be a number >= 0 and below 1, got {text!r}")
    return number


def _penalty(text: str) -> str | float:
    if text in ("validation", "simulated"):
        return text
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(
            f'must be "validation", "simulated" or a number > 0, got {text!r}'
        )
    return number
