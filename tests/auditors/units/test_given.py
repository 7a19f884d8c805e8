"""What the user gives beside the probes: what is refused once it is read, and what is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file
from tests.auditors.units import planted
from tests.auditors.units.planted import World
from tests.support import save_probes

from onnx_audit import v1
from onnx_auditors.context import Context, open_context
from onnx_auditors.errors import AuditError
from onnx_auditors.network import load
from onnx_auditors.units import reference
from onnx_auditors.units.auditor import UnitsAuditor

COUNT = 60
BOX = v1.InputSpec(lower=[0.0], upper=[1.0])
OTHER = v1.UnitReference(model="models/other")


@pytest.fixture(scope="module")
def small() -> World:
    return planted.world(COUNT)


def opened(folder: Path, world: World, **arrays: Any) -> Context:
    """A context with another model and files of arrays, `blobs/{name}` each."""
    onnx.save(planted.convolution(world), folder / "m.onnx")
    onnx.save(planted.gaussian(1, 24), folder / "other.onnx")
    for name, array in arrays.items():
        save_file({name: array}, folder / name)
    return open_context(
        folder / "m.onnx",
        save_probes(folder / "p", world.images, world.labels),
        BOX,
        seed=3,
        threads=1,
        peers={OTHER.model: folder / "other.onnx"},
        arrays={f"blobs/{name}": folder / name for name in arrays},
    )


@pytest.mark.parametrize(
    ("config", "arrays", "field", "said"),
    [
        (
            v1.UnitsConfig(masks="blobs/masks"),
            {"masks": np.ones((COUNT, 1, 4, 4), np.uint8)},
            "masks",
            "4 x 4 pixels, and the probes 18 x 18",
        ),
        (
            v1.UnitsConfig(concepts="blobs/concepts"),
            {"concepts": np.full((COUNT, 1), 2)},
            "concepts",
            "holds 2; expected 0 and 1",
        ),
        (
            v1.UnitsConfig(embedding=v1.UnitReference(features="blobs/features")),
            {"features": np.full((COUNT, 2), np.nan, np.float32)},
            "embedding.features",
            "NaN or infinite",
        ),
        (
            v1.UnitsConfig(given_directions="blobs/nothing"),
            {"nothing": np.ones((2, 3), np.float32)},
            "given_directions",
            "given for 'nothing', which is not looked at; values looked at: map",
        ),
        (
            v1.UnitsConfig(given_directions="blobs/map"),
            {"map": np.ones((2, 3), np.float32)},
            "given_directions",
            r"shape \[2, 3\]; expected finite rows of 48 units",
        ),
        (
            v1.UnitsConfig(embedding=v1.UnitReference(model=OTHER.model, value="fc9")),
            {},
            "embedding.value",
            "reference embedding: the model has no value 'fc9'; near it: fc",
        ),
        (
            v1.UnitsConfig(
                embedding=v1.UnitReference(model=OTHER.model, input_height=5, input_width=5)
            ),
            {},
            "embedding.input_spec",
            "a probe has the shape \\[3, 5, 5\\]",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path,
    small: World,
    config: v1.UnitsConfig,
    arrays: dict[str, Any],
    field: str,
    said: str,
) -> None:
    """The field at fault, what was found and what is allowed."""
    config.values.append("map")
    context = opened(tmp_path, small, **arrays)
    auditor = UnitsAuditor()
    with pytest.raises(AuditError, match=said) as caught:
        auditor.run(auditor.resolve(config, context), context, 0, lambda *_: None)
    assert caught.value.metadata["field"] == field


def test_without_a_name_the_last_linear_layer_says_which_value(
    tmp_path: Path, small: World
) -> None:
    """An embedding by a classifier is what its last layer reads, probe by probe."""
    context = opened(tmp_path, small)
    embedding = reference.of_model(OTHER, context)
    assert embedding.source == "value 'fc1_relu' of models/other"
    rows = np.array([5, 0, 7])
    network = load(tmp_path / "other.onnx", context.device)
    fed = context.input_map(context.input_map.lower.new_tensor(context.inputs(rows)))
    expected = network.values(fed, ["fc1_relu"])["fc1_relu"].detach().cpu().numpy()
    assert embedding.features(rows) == pytest.approx(expected, abs=1e-5)
