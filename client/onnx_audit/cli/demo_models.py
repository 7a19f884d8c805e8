"""What `onnx-audit demo` audits: three small networks trained on scikit-learn's digits.

Everything is seeded; torch and scikit-learn are imported here and nowhere else in this package.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_audit.errors import OnnxAuditError

PROBES: Final = 150
_TEST_SHARE: Final = 0.25
_EPOCHS: Final = 60
_BATCH: Final = 64
_PIXEL_MAX: Final = 16.0


class DemoError(OnnxAuditError):
    """The demo cannot run on this machine."""


@dataclass(frozen=True, eq=False)
class Digits:
    """The digits, split: pixels in [0, 1] as float32 [N, 64], labels as int64 [N]."""

    train_x: npt.NDArray[np.float32]
    train_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[np.float32]
    test_y: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainedModel:
    """A network that was trained and exported.

    Attributes:
        path: Its ONNX file.
        description: What it is.
        accuracy: Share of the held-out digits that it gets right in torch.
    """

    path: Path
    description: str
    accuracy: float


def load_digits(seed: int) -> Digits:
    """Splits scikit-learn's 1,797 digits (8x8 pixels, values 0 to 16) for training and probing.

    Raises:
        DemoError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise _missing_extra(error) from error
    pixels, labels = datasets.load_digits(return_X_y=True)
    scaled = (pixels / _PIXEL_MAX).astype(np.float32)
    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        scaled, labels.astype(np.int64), test_size=_TEST_SHARE, random_state=seed, stratify=labels
    )
    return Digits(train_x, train_y, test_x, test_y)


def train_models(
    digits: Digits, folder: Path, seed: int, say: Callable[[str], None]
) -> list[TrainedModel]:
    """Trains and exports two perceptrons and a convolutional network.

    Raises:
        DemoError: torch or what its exporter needs is not installed.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415 - torch's exporter needs it
        import torch  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise _missing_extra(error) from error
    half = len(digits.train_x) // 2
    plans = [
        ("mlp-a", "perceptron 64-64-32-10", _perceptron, len(digits.train_x)),
        ("mlp-b", "the same, another seed and half of the data", _perceptron, half),
        ("cnn", "convolutional network", _convolutional, len(digits.train_x)),
    ]
    trained = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small train faster on one thread
    try:
        for offset, (name, description, build, count) in enumerate(plans):
            torch.manual_seed(seed + offset)
            network = build(torch)
            _train(torch, network, digits.train_x[:count], digits.train_y[:count])
            path = folder / f"{name}.onnx"
            _export(torch, network, path)
            accuracy = _accuracy(torch, network, digits)
            say(f"trained {path} ({description}): {accuracy:.1%} of the held-out digits right")
            trained.append(TrainedModel(path, description, accuracy))
    finally:
        torch.set_num_threads(threads)
    return trained


def _missing_extra(error: ImportError) -> DemoError:
    return DemoError(
        f"the demo trains its own networks and needs the demo extra ({error}): "
        "pip install 'onnx-audit[demo]'"
    )


def _perceptron(torch: Any) -> Any:  # noqa: ANN401 - torch is not there at typing time
    nn = torch.nn
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def _convolutional(torch: Any) -> Any:  # noqa: ANN401 - torch is not there at typing time
    nn = torch.nn
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def _train(torch: Any, network: Any, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:  # noqa: ANN401 - see _perceptron
    """Adam on the cross entropy, in batches drawn by torch's seeded generator."""
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(inputs)).split(_BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
    network.eval()


def _accuracy(torch: Any, network: Any, digits: Digits) -> float:  # noqa: ANN401 - see _perceptron
    """Share of the held-out digits that a network gets right."""
    with torch.no_grad():
        answers = network(torch.from_numpy(digits.test_x)).argmax(1).numpy()
    return float((answers == digits.test_y).mean())


def _export(torch: Any, network: Any, path: Path) -> None:  # noqa: ANN401 - see _perceptron
    """Exports with an open batch axis; the exporter's own chatter is kept back."""
    batch = torch.export.Dim("batch")
    silence = io.StringIO()
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 64),),
                dynamo=True,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
            # The exporter notes where in which file each node was traced: the same training would
            # give another file on every machine, and tell of its folders.
            for node in program.model.graph:
                node.metadata_props.clear()
            program.save(str(path), external_data=False)
    finally:
        logging.disable(previous)
