"""`jaxsac route`: options, progress, files and printing around the job."""

import argparse
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxsac import _files
from jaxsac.route import deployed, job, mine, report, results
from jaxsac.route.deployed import Choice
from jaxsac.route.log_file import LogError, RouteLog, read_log
from jaxsac.route.progress import Stages
from jaxsac.route.router import choose, load_router

_DESCRIPTION = """\
Learn a sparse tool router from a log, and keep only the tools that matter.

With LOG: JSON lines, {"context": "text" or [numbers], "tools": ["name", ...],
"utility": 1.0, "group": "session"}; the last two are optional, and where utilities differ,
records of higher utility count more; a tools.json beside it may say more:
{"name": {"description": "text", "cost": 1.0, "family": "name"}}. Records and tools may
have an "embedding": [numbers] too.
Without LOG: a real log is mined from the installed Python sources; each documented function is a
task, the library calls in its body are the tools that it used.
With --policy: no learning; the saved router chooses tools for each TEXT."""

_EXAMPLES = """\
examples:
  jaxsac route
      mine a log, learn, report, write route-results/
  jaxsac route calls.jsonl --out router
      the same from your log
  jaxsac route calls.jsonl --update router --out router
      learn again after the log has grown, at the penalty of then
  jaxsac route --policy router "plot a histogram"
      choose tools for a new text
  jaxsac route --policy router --json - < texts.txt
      ... for each line of a file, as JSON lines"""


def add_parser(commands: Any) -> None:
    """Add `route` to the subcommands of an argparse parser."""
    defaults = job.Options()
    parser = commands.add_parser(
        "route",
        help="learn a sparse tool router from a log of tool uses",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
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
        type=_WHOLE,
        metavar="B",
        help="tools a record may use (default: the 95th percentile; longer records are dropped)",
    )
    parser.add_argument(
        "--lam",
        type=_PENALTY,
        metavar="LAM",
        help='penalty: "validation" (default), "simulated", or a number > 0',
    )
    parser.add_argument(
        "--keep",
        type=_WHOLE,
        default=defaults.keep,
        metavar="K",
        help="with --lam validation: at most so many tools look at the context, and some do where"
        " the log has any that can (default: no bound)",
    )
    parser.add_argument(
        "--family-share",
        type=_SHARE,
        default=defaults.family_share,
        metavar="R",
        help="share of the penalty on families of tools, where the tools file names some"
        " (default: none)",
    )
    parser.add_argument(
        "--features",
        type=_WHOLE,
        default=defaults.size,
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
        help="a router to use: the folder of an earlier --out",
    )
    parser.add_argument(
        "--cost-limit",
        type=_POSITIVE,
        metavar="C",
        help="with --policy: as many tools as fit this total cost, not the B best",
    )
    parser.add_argument(
        "--top", type=_WHOLE, metavar="K", help="with --policy: so many tools (default: the budget)"
    )
    parser.add_argument(
        "--at-least",
        type=_SHARE,
        default=0.0,
        metavar="P",
        help="with --policy: only tools of at least this probability",
    )
    parser.add_argument(
        "--always",
        action="append",
        default=[],
        metavar="TOOL",
        help="with --policy: a tool that is in every answer (may be repeated)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write diagnosis.html: can the kept tools of a sparse policy over the context's"
        " features be trusted? (learns 10 halves of the log too: minutes more)",
    )
    parser.add_argument(
        "--update",
        type=pathlib.Path,
        metavar="DIR",
        help="learn LOG (old and new lines) from an earlier --out, at its penalty (so without --lam"
        " and --keep)",
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
    refusals = {
        f"one log at a time, got {len(given.inputs)}: join them, or use --policy PATH to route"
        " texts.": len(given.inputs) > 1,
        "--json goes with --policy.": given.json,
        "--update learns from a log: give the file that holds the old and the new lines.": (
            given.update is not None and not given.inputs
        ),
        "--update keeps the penalty of the earlier run: leave out --lam and --keep, or learn anew"
        " without --update.": given.update is not None and bool(given.lam or given.keep),
        "--tools describes the tools of a log: give the log too.": (
            given.tools is not None and not given.inputs
        ),
    }
    for name in ("cost_limit", "top", "at_least", "always"):
        refusals[f"--{name.replace('_', '-')} goes with --policy."] = bool(getattr(given, name))
    for message, refused in refusals.items():
        if refused:
            raise LogError(message)
    earlier = None if given.update is None else results.read_earlier(given.update)
    results.check_out(given.out)
    stages = Stages.unseen()
    with stages.clock("reading" if given.inputs else "mining"):
        log = _log(given)
    options = job.Options(
        budget=given.budget,
        lam=given.lam or job.Options().lam,
        keep=given.keep,
        size=given.features,
        curve=() if given.no_curve or earlier is not None else job.Options().curve,
        seed=given.seed,
        processes=_processes(),
        diagnose=given.report,
        family_share=given.family_share,
        earlier=earlier,
    )
    result = job.run(log, options, progress=not given.quiet)
    result.summary["seconds"] = stages.seconds | result.summary["seconds"]
    paths = results.write(given.out, result)
    print(report.text(result))
    print("wrote     " + ", ".join(str(path) for path in paths))
    router = result.router
    if isinstance(router, deployed.Router):
        call = f'jaxsac route --policy {given.out} "what you want done"'
        if router.reading.embedded is not None:
            call = f'jaxsac.Router.load("{given.out}", embed=your_encoder), in Python'
        print(f"next      {call}")
    return 0


def _log(given: argparse.Namespace) -> RouteLog:
    if given.inputs:
        return read_log(given.inputs[0], given.tools)
    cache = None if given.no_cache else mine.cache_folder()
    return mine.mine(processes=_processes(), progress=not given.quiet, cache=cache)


def _route(given: argparse.Namespace) -> int:
    if not given.inputs:
        raise LogError(
            '--policy needs texts to route: jaxsac route --policy PATH "what you want done".'
        )
    texts = []
    for text in given.inputs:
        lines = (line.strip() for line in sys.stdin) if text == "-" else [text]
        texts += [line for line in lines if line.strip()]
    if not texts:
        raise LogError("--policy got empty texts only: there is nothing to route.")
    for text, choices in zip(texts, _choices(given, texts), strict=True):
        if given.json:
            found = {"context": text, "tools": [choice._asdict() for choice in choices]}
            print(json.dumps(found, ensure_ascii=False))
            continue
        width = max((len(choice.tool) for choice in choices), default=0)
        print(text)
        for choice in choices:
            print(f"  {choice.tool:{width}}  {choice.probability:6.1%}")
    return 0


def _choices(given: argparse.Namespace, texts: list[str]) -> list[list[Choice]]:
    """Of the router of a log of texts, or of the policy of a log of numbers."""
    if (given.policy / deployed.FILE).is_file():
        agent = deployed.Router.load(given.policy)
        if agent.reading.embedded is not None:
            raise LogError(
                "this router reads embeddings, so it is called from Python:"
                f' jaxsac.Router.load("{given.policy}", embed=your_encoder).'
            )
        options = {"top": given.top, "at_least": given.at_least, "always": given.always}
        try:
            return agent(texts, **options, cost_limit=given.cost_limit)
        except ValueError as error:
            raise LogError(str(error)) from None
    router = load_router(given.policy)
    if given.top or given.at_least or given.always:
        raise LogError(
            "--top, --at-least and --always need the folder of a run on texts, with"
            f" {deployed.FILE}."
        )
    return choose(router, np.asarray([_numbers(text) for text in texts]), given.cost_limit)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in json.loads(text)]
    except (TypeError, ValueError):
        raise LogError(
            f"this router's contexts are lists of numbers, such as [0.5, 1], got {text!r}."
        ) from None


def _processes() -> int:
    cores = os.cpu_count() or 1
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores)


def _option(
    convert: Callable[[str], float], fits: Callable[[float], bool], words: str, texts: tuple = ()
) -> Callable[[str], Any]:
    """A reader of an option: one of `texts`, or a number that fits; else says what it must be."""

    def read(text: str) -> Any:
        if text in texts:
            return text
        try:
            number = convert(text)
        except ValueError:
            number = math.nan
        if not fits(number):
            raise argparse.ArgumentTypeError(f"must be {words}, got {text!r}")
        return number

    return read


_WHOLE = _option(int, lambda number: number >= 1, "a whole number >= 1")
_POSITIVE = _option(float, lambda number: 0 < number < math.inf, "a number > 0")
_SHARE = _option(float, lambda number: 0 <= number < 1, "a number >= 0 and below 1")
_PENALTY = _option(
    float,
    lambda number: 0 < number < math.inf,
    '"validation", "simulated" or a number > 0',
    texts=("validation", "simulated"),
)
