"""What a run shows while it works."""

import io

import numpy as np
import pytest

from jaxsac.route import job
from jaxsac.route.log_file import RouteLog


@pytest.mark.slow
@pytest.mark.parametrize("texts", [True, False])
def test_the_bar_names_its_stages_and_ends_full(texts, monkeypatch):
    generator, stream = np.random.default_rng(0), io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    words = ["chart", "mail", "photo"]
    use = generator.integers(3, size=90)
    sets = [(words[number],) for number in use]
    contexts = [f"{words[number]} number {row}" for row, number in enumerate(use)]
    given = contexts if texts else np.eye(3)[use] + generator.normal(size=(90, 3))
    log = RouteLog(given, sets, np.ones(90), contexts, {}, {"source": "a test"})
    job.run(log, job.Options(size=4, curve=(20,)), progress=True)
    shown = stream.getvalue()
    assert f"{8 if texts else 6}/{8 if texts else 6}" in shown.split("\r")[-1]
    assert "dense policy" in shown and ("tools, validation -" in shown) == texts
    stream.truncate(0)
    job.run(log, job.Options(size=4, curve=()), progress=False)
    assert not stream.getvalue().strip("\0")
