"""Converts ONNX models to torch with one public converter and runs them.

`converters.py` calls this file with the python of an environment that holds torch, onnx and the
converters; it imports nothing of this project. It reads numbers of tests line by line, and answers
each with a line when what the converted model gives lies in the folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

CONVERTERS: dict[str, Callable[[Any, onnx.ModelProto], Any]] = {
    "onnx2torch": lambda package, model: package.convert(model),
    # Only the experimental mode takes batches of more than one.
    "onnx2pytorch": lambda package, model: package.ConvertModel(model, experimental=True),
    "onnx2fx": lambda package, model: package.convert(model),
}
"""Functions from a package and a model to a torch module, by the package's name."""


def versions() -> dict[str, str]:
    """Returns the versions of the converters that are installed, by name."""
    found = {}
    for name in CONVERTERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def answer(name: str, folder: Path, test: str) -> None:
    """Converts and runs one test, and stores its outputs; raises what the converter raises."""
    model = onnx.load(folder / f"{test}.onnx")
    inputs = torch.load(folder / f"{test}.pt", weights_only=True)
    with torch.no_grad():
        found = CONVERTERS[name](importlib.import_module(name), model).eval()(*inputs)
    results = list(found) if isinstance(found, tuple | list) else [found]
    partial = folder / f"{name}-{test}.part"
    torch.save([_tensors(x) for x in results], partial)
    partial.rename(folder / f"{name}-{test}.pt")


def _tensors(value: Any) -> Any:  # noqa: ANN401 - a tensor, a number or a list of them
    if value is None or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, tuple | list):
        return [_tensors(x) for x in value]
    return torch.as_tensor(np.asarray(value))


def main() -> None:
    """Runs the tests that are asked for, or says which converters there are."""
    if len(sys.argv) == 1:
        print("node_tests.py runs this file with the peers' python")
        return
    if sys.argv[1] == "--versions":
        print(json.dumps(versions()))
        return
    # Converters print; what they print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    name, folder = sys.argv[1], Path(sys.argv[2])
    importlib.import_module(name)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        test = line.strip()
        try:
            answer(name, folder, test)
        except Exception as error:  # noqa: BLE001 - it does not run the test, whatever it raises
            print(f"{test}: {type(error).__name__}", file=answers, flush=True)
        else:
            print(test, file=answers, flush=True)


if __name__ == "__main__":
    main()
