"""callbus on the same embeddings: its heads, trained by `callbus learn` on a usage log that its own
writers make of the training records.

A search is logged as its server would have: the tools that the record used and the ten nearest
others, which are its hard negatives; a call for each used tool, which ended well. Its cache gets
the embeddings, equal ones being one request, so that no endpoint is asked.
"""

import pathlib
import tempfile
import time

import numpy as np

_ENDPOINT, _MODEL, _TRUNCATE, _SHOWN = "http://127.0.0.1:9/v1", "given", 8192, 10
_TRAININGS = ((1e-5, 3), (1e-4, 10), (1e-3, 10))  # rate and epochs; its defaults first


def answer(arrays, settings):
    import callbus.cli
    import torch
    from callbus.adapters.embeddings_api import OpenAIEmbeddings, l2_normalize
    from callbus.adapters.heads_np import NumpyHeads
    from callbus.datasets.jsonl import write_tools
    from callbus.domain import Tool
    from callbus.retriever import SearchResult
    from callbus.usage import UsageLog

    torch.set_num_threads(settings["threads"])
    training, validation, test, tools = (
        l2_normalize(arrays[name].astype(np.float32))
        for name in ("training", "validation", "test", "tools")
    )
    alone = validation @ tools.T, test @ tools.T
    found, decisions = [alone], []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        data = pathlib.Path(name)
        names = [f"tool {number}" for number in range(len(tools))]
        write_tools(data / "tools.jsonl", [Tool(one, documentation=one) for one in names])
        encoder = OpenAIEmbeddings(
            _MODEL, _ENDPOINT, truncate_prompt_tokens=_TRUNCATE, cache_dir=data / "cache"
        )
        requests = [row.tobytes().hex() for row in training]
        encoder.cache.put_many(names + requests, np.concatenate([tools, training]))
        log = UsageLog(data / "usage")
        for text, row, used in zip(requests, training, arrays["used"], strict=True):
            cosines = tools @ row
            order = [*np.flatnonzero(used), *(j for j in np.argsort(-cosines) if not used[j])]
            shown = [_Hit(names[j]) for j in order[: int(used.sum()) + _SHOWN]]
            ranked = [(names[j], float(cosines[j])) for j in order[: len(shown)]]
            result = SearchResult(
                query=text,
                instruction="",
                hits=shown,
                ranked=ranked,
                took_ms=0.0,
                rule="top-k",
                emb_key=encoder.cache_key(text),
                scorer=encoder.name,
                catalog="log",
                model=_MODEL,
            )
            search = log.search(result, session=None, via="rest")
            for j in np.flatnonzero(used):
                log.call(
                    tool=names[j],
                    kind="mcp",
                    session=None,
                    via="rest",
                    outcome="ok",
                    took_ms=None,
                    search_id=search,
                )
        seconds = [time.perf_counter() - start]
        for rate, epochs in _TRAININGS:
            start = time.perf_counter()
            heads = data / f"{rate}-{epochs}.npz"
            options = {"data": data, "out": heads, "results": data, "lr": rate, "epochs": epochs}
            options |= {"emb-url": _ENDPOINT, "emb-model": _MODEL, "truncate": _TRUNCATE}
            options |= {"init": "none"}  # the packaged heads are another encoder's
            callbus.cli.main(["learn", *(f"--{key}={value}" for key, value in options.items())])
            if heads.exists():
                own = NumpyHeads(heads)
                actions = own.project_actions(tools)
                found.append([own.project_states(x) @ actions.T for x in (validation, test)])
            else:  # none that its own judgement holds for better: it serves the embeddings
                found.append(alone)
            decisions.append(heads.exists())
            seconds.append(time.perf_counter() - start)
    first, second = (np.stack([one[part] for one in found]) for part in (0, 1))
    return {"validation": first, "test": second}, {"seconds": seconds, "published": decisions}


class _Hit:
    """What the log reads of a tool that was shown."""

    def __init__(self, name):
        self.id = name
