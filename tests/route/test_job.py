"""What the job refuses of a log that was read."""

import numpy as np
import pytest

from jaxsac.route import job, split
from jaxsac.route.features import fit_features
from jaxsac.route.fold import make_fold
from jaxsac.route.log_file import LogError, RouteLog
from jaxsac.route.progress import Stages, bar


def log_of(tools, size=12):
    """Records of two words that use one of `tools` each."""
    texts = [f"{word} now" for word in ("chart", "table", "mail", "sum")] * (size // 4)
    sets = [(tools[n % len(tools)],) for n in range(size)]
    return RouteLog(texts, sets, np.ones(size), [str(n) for n in range(size)], {}, {})


def test_a_training_set_that_shares_no_tool_with_validation_is_told_so():
    """As the smaller ones of a learning curve may: its tools are those of other records."""
    training, other = log_of(["send", "load"]), log_of(["draw"])
    parts = split.Parts(training, other, other)
    names = ["draw", "load", "send"]
    fold = make_fold(parts, training, names, fit_features(training.contexts, 4), 1)
    with pytest.raises(LogError, match="no validation record uses a tool that the training"):
        job._baselines(fold, 1, Stages({}, bar(0, "", shown=False)))
