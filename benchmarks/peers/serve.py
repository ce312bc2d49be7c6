"""The peer's side of the exchange: `python serve.py ROOM/LIBRARY FOLDER`. Needs numpy alone: the
interpreter that runs it need not have jax or jaxsac.
"""

import importlib.util
import json
import pathlib
import sys

import numpy as np


def serve(peer: str, folder: pathlib.Path) -> None:
    """Read the arrays and settings that `run_peer` left, call the peer's `answer(arrays,
    settings)`, and write the (arrays, numbers) it returns.
    """
    arrays = {
        path.stem.removeprefix("in_"): np.load(path, allow_pickle=False)
        for path in sorted(folder.glob("in_*.npy"))
    }
    settings = json.loads((folder / "settings.json").read_text())
    try:
        outputs, numbers = loaded(peer).answer(arrays, settings)
        for name, value in outputs.items():
            np.save(folder / f"out_{name}.npy", np.asarray(value), allow_pickle=False)
        result = {"status": "ok"} | numbers
    except ImportError as error:
        result = {"status": f"not run: {error}"}
    # Last and in one step: an answer that is there is whole.
    temporary = folder / "answer.tmp"
    temporary.write_text(json.dumps(result))
    temporary.rename(folder / "answer.json")


def loaded(peer: str):
    """The module of a peer. Its folder is not on the path: a file has the name of the library that
    it imports.
    """
    path = pathlib.Path(__file__).parent / f"{peer}.py"
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    serve(sys.argv[1], pathlib.Path(sys.argv[2]))
