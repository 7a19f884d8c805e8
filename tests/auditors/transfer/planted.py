"""Models of which it is known how the examples of one do with the others, and audits of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file
from tests.auditors.whole import audit as whole_audit
from tests.support import save_probes

from onnx_audit import v1
from onnx_auditors.context import Context, open_context

SHAPE, CLASSES, HIDDEN = (3, 6, 6), 4, 24
MEAN, STD = 0.5, 0.25
AUDITED = v1.InputSpec(lower=[0.0], upper=[1.0], mean=[MEAN], std=[STD])

Weights = dict[str, npt.NDArray[np.float32]]
Node = tuple[str, Sequence[str], str]


@dataclass(frozen=True)
class Form:
    """A way to write the same function.

    Attributes:
        before: Nodes from "x" to the value in `start`.
        start: What the first product gets, [n, 3, 6, 6] in any form.
        after: Nodes from "z" on, the logits.
        end: The output.
        batch: Size of the batch axis.
        shape: Shape of one input.
        constants: Further constants.
    """

    before: Sequence[onnx.NodeProto] = ()
    start: str = "x"
    after: Sequence[onnx.NodeProto] = ()
    end: str = "z"
    batch: int | str = "n"
    shape: Sequence[int] = SHAPE
    constants: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


def weights(seed: int = 0) -> Weights:
    """Returns the weights of a network of one hidden layer."""
    random = np.random.default_rng(seed)
    size = int(np.prod(SHAPE))
    return {
        "w": random.normal(0, 1 / np.sqrt(size), (size, HIDDEN)).astype(np.float32),
        "b": random.normal(0, 0.1, HIDDEN).astype(np.float32),
        "v": random.normal(0, 2 / np.sqrt(HIDDEN), (HIDDEN, CLASSES)).astype(np.float32),
        "c": random.normal(0, 0.1, CLASSES).astype(np.float32),
    }


def network(numbers: Weights, form: Form | None = None, hidden: str = "Tanh") -> onnx.ModelProto:
    """Returns the network in some form."""
    form = form or Form()
    nodes = [
        *form.before,
        helper.make_node("Flatten", [form.start], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["g"]),
        helper.make_node(hidden, ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "v", "c"], ["z"]),
        *form.after,
    ]
    constants = {**numbers, **form.constants}
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [form.batch, *form.shape])],
        [helper.make_empty_tensor_value_info(form.end)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


@dataclass(frozen=True)
class Audit:
    """An audit of models in this process.

    Attributes:
        context: Of the audited model.
        section: What came out.
        folder: Where artefacts lie, by digest.
        models: Files, the audited one first.
        inputs: Probes.
        labels: Their labels.
    """

    context: Context
    section: v1.TransferSection
    folder: Path
    models: list[Path]
    inputs: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64] | None
    warnings: list[v1.ReportWarning]

    def cell(
        self,
        source: int,
        target: int,
        attack: v1.TransferAttack.ValueType = v1.TRANSFER_ATTACK_MINIMAL,
    ) -> v1.TransferCell:
        """Returns a cell."""
        (found,) = (
            cell
            for cell in self.section.cells
            if (cell.source, cell.target, cell.attack) == (source, target, attack)
        )
        return found

    def examples(
        self, attack: v1.TransferAttack.ValueType = v1.TRANSFER_ATTACK_MINIMAL
    ) -> dict[str, npt.NDArray[Any]]:
        """Returns the exported examples of an attack."""
        (files,) = (files for files in self.section.artefacts if files.attack == attack)
        return load_file(self.folder / files.examples.sha256)


def run(
    folder: Path,
    models: Sequence[onnx.ModelProto],
    config: v1.TransferConfig,
    inputs: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64] | None,
    spec: v1.InputSpec = AUDITED,
    seed: int = 3,
) -> Audit:
    """Audits the first model beside the others; `config` has a peer for each, unnamed."""
    paths = []
    for i, model in enumerate(models):
        (folder / f"{i}").mkdir()
        paths.append(folder / f"{i}" / "model.onnx")
        paths[-1].write_bytes(model.SerializeToString())
    for i, peer in enumerate(config.peers, 1):
        peer.model = f"models/{i:064x}"
    probes = save_probes(folder / "probes.safetensors", inputs, labels)
    files = {peer.model: path for peer, path in zip(config.peers, paths[1:], strict=True)}
    context = open_context(paths[0], probes, spec, seed=seed, peers=files, threads=1)
    _, result = whole_audit(v1.AuditorConfigs(transfer=config), context, folder)
    return Audit(context, result.transfer, folder, paths, inputs, labels, list(result.warnings))


def images(count: int, seed: int = 1) -> npt.NDArray[np.float32]:
    """Returns random images in [0.1, 0.9]."""
    return np.random.default_rng(seed).uniform(0.1, 0.9, (count, *SHAPE)).astype(np.float32)


def answers(numbers: Weights, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Returns the network's answers to images, computed by numpy in float64."""
    flat = ((inputs.astype(np.float64) - MEAN) / STD).reshape(len(inputs), -1)
    hidden = np.tanh(flat @ numbers["w"] + numbers["b"])
    found: npt.NDArray[np.int64] = (hidden @ numbers["v"] + numbers["c"]).argmax(1)
    return found
