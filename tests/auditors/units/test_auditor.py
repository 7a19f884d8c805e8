"""The auditor as the service runs it, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from tests.auditors.units import planted
from tests.auditors.units.planted import CONCEPTS, World
from tests.auditors.whole import audit
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors import units
from onnx_auditors.audit import plan, run_shard
from onnx_auditors.context import Context, open_context
from onnx_auditors.errors import InvalidConfig, ModelFailed, ProbesDoNotFit
from onnx_auditors.network import Network, load

QUICK = v1.UnitsConfig(directions=128, rotations=19, bases=[v1.UNIT_BASIS_PCA])
BOX = v1.InputSpec(lower=[0.0], upper=[1.0])


def quick(**fields: Any) -> v1.AuditorConfigs:
    """A configuration that is done in a second or two."""
    config = v1.UnitsConfig(**fields)
    config.MergeFrom(QUICK)
    return v1.AuditorConfigs(units=config)


def opened(
    folder: Path,
    model: onnx.ModelProto,
    inputs: npt.NDArray[Any],
    labels: npt.NDArray[np.int64] | None = None,
    *,
    classes: bool = True,
) -> Context:
    onnx.save(model, folder / "m.onnx")
    probes = save_probes(folder / "p", inputs, labels)
    return open_context(folder / "m.onnx", probes, BOX, seed=3, threads=1, classes=classes)


def maps(world: World) -> onnx.ModelProto:
    """A rectified convolution "seen" with a unit per patch, and a head."""
    model = planted.convolution(world)
    model.graph.node[1].input[0] = "seen"
    model.graph.node.insert(1, helper.make_node("Relu", ["map"], ["seen"]))
    return model


def test_a_whole_audit(tmp_path: Path) -> None:
    """Planned, run shard by shard and merged, with pictures that can be opened."""
    world = planted.world(900)
    context = opened(tmp_path, maps(world), world.images, world.labels)
    planned, result = audit(quick(untrained_twin=True), context, tmp_path)
    (part,) = planned.plans
    assert (part.auditor, part.shards, part.unit) == (v1.AUDITOR_UNITS, 8, "probes and layers")
    section = result.units
    (layer,) = section.layers
    assert (layer.value, layer.measured_value, layer.dimension) == ("seen", "map", CONCEPTS)
    assert layer.positions == 9
    label = layer.scores[0]
    assert (label.kind, label.top) == (v1.UNIT_SCORE_KIND_LABEL, 9)
    assert label.index_auc.value > 0.9
    assert label.verdict == v1.UNIT_VERDICT_MORE
    assert label.HasField("after_rectifier")
    assert 0.3 < label.untrained.value < 0.7
    assert "more meaningful than random" in layer.summary
    # Each unit has its largest value where its patch is: row and column of the grid of 3 x 3.
    for row in layer.units[:20]:
        (where,) = {(c % 3) * 3 + (c // 3 + c // 12) % 3 for c in [row.unit]}
        assert list(row.top_positions) == [where] * 9
    kinds = [gallery.kind for gallery in layer.galleries]
    names = ("PAIRS", "BLIND", "STRIPS", "UNITS", "FILTERS")
    assert {v1.UnitGalleryKind.Value(f"UNIT_GALLERY_KIND_{name}") for name in names} <= set(kinds)
    for gallery in layer.galleries:
        path = tmp_path / gallery.image.sha256
        assert path.stat().st_size == gallery.image.size_bytes
        with Image.open(path) as picture:
            picture.load()
            assert f"image/{str(picture.format).lower()}" == gallery.image.media_type
    assert sum(gallery.image.size_bytes for gallery in layer.galleries) < 400_000
    pairs, blind = layer.galleries[:2]
    assert sorted(pairs.order) == sorted(blind.order)
    assert list(pairs.order) != list(blind.order)


def test_shards_are_repeatable(tmp_path: Path) -> None:
    """The same shard twice gives the same bytes; a fresh process starts from files alone."""
    world = planted.world(200)
    context = opened(tmp_path, maps(world), world.images, world.labels)
    planned = plan(quick(), context)
    again = open_context(tmp_path / "m.onnx", tmp_path / "p", BOX, seed=3, threads=1)
    first, second = (
        run_shard(planned.auditors, each, v1.AUDITOR_UNITS, 1, lambda *_: None)
        for each in (context, again)
    )
    assert first == second


def test_an_autoencoder_without_labels(tmp_path: Path) -> None:
    """A model with neither classes nor labels is measured by coherence; a warning says so."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["code"], strides=[6, 6]),
        helper.make_node("Relu", ["code"], ["seen"]),
        helper.make_node("ConvTranspose", ["seen", "k"], ["y"], strides=[6, 6]),
    ]
    kernels = rng.standard_normal((32, 3, 6, 6)).astype(np.float32)
    model = graph_model(nodes, {"x": ["n", 3, 18, 18]}, {"k": kernels})
    context = opened(tmp_path, model, planted.world(200).images, classes=False)
    _, result = audit(quick(), context, tmp_path)
    (layer,) = result.units.layers
    assert [score.kind for score in layer.scores] == [v1.UNIT_SCORE_KIND_COHERENCE]
    assert [warning.code for warning in result.warnings] == ["UNLABELLED_PROBES"]


def test_layers_left_out_are_named(tmp_path: Path) -> None:
    """Where there are more layers than asked for, the report says which are missing."""
    world = planted.world(200)
    context = opened(tmp_path, planted.network(world), world.images, world.labels)
    _, result = audit(quick(max_layers=1), context, tmp_path)
    assert [layer.value for layer in result.units.layers] == ["fc1_relu"]
    assert list(result.units.left_out) == ["fc0_relu"]
    assert "LAYERS_LEFT_OUT" in [warning.code for warning in result.warnings]


# What is refused


X = np.random.default_rng(1).random((60, 8), dtype=np.float32)


def net(*nodes: onnx.NodeProto) -> Network:
    """A network of 12 units "hidden", then some nodes, then logits of the last one's output."""
    rng = np.random.default_rng(2)
    weights: dict[str, npt.NDArray[Any]] = {
        "w": rng.standard_normal((8, 12)).astype(np.float32),
        "v": rng.standard_normal((12, 3)).astype(np.float32),
        "zero": np.zeros((12, 12), np.float32),
        "none": np.array(np.inf, np.float32),
    }
    last = nodes[-1].output[0] if nodes else "hidden"
    every = [
        helper.make_node("MatMul", ["x", "w"], ["hidden"]),
        *nodes,
        helper.make_node("MatMul", [last, "v"], ["logits"]),
    ]
    return load(graph_model(every, {"x": ["n", 8]}, weights, outputs=["logits"]))


def refused(
    kind: type[Exception], match: str, network: Network | None = None, **options: Any
) -> None:
    settings: dict[str, Any] = {"inputs": X, "directions": 64, "rotations": 19} | options
    with pytest.raises(kind, match=match):
        units.measure(network or net(), **settings)


def test_a_constant_value() -> None:
    """A value that no probe moves has no units."""
    flat = net(helper.make_node("MatMul", ["hidden", "zero"], ["flat"]))
    refused(InvalidConfig, "'flat' is constant", flat, values=["flat"])


def test_a_value_that_does_not_exist() -> None:
    """The near names are shown."""
    refused(InvalidConfig, "no value 'hiden'; near it: hidden", values=["hiden"])


def test_values_that_are_no_rows_of_floats() -> None:
    """Integers, and values without a row for each probe, are refused."""
    cast = net(
        helper.make_node("Cast", ["hidden"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Cast", ["whole"], ["back"], to=TensorProto.FLOAT),
    )
    refused(InvalidConfig, "'whole' is int64", cast, values=["whole"])
    shape = net(
        helper.make_node("ReduceSum", ["hidden"], ["sum"], keepdims=0),
        helper.make_node("Add", ["hidden", "sum"], ["moved"]),
    )
    refused(InvalidConfig, r"'sum' has the shape \[\] for 2 probes", shape, values=["sum"])
    refused(InvalidConfig, "named twice", values=["hidden", "hidden"])


def test_too_few_probes() -> None:
    """Fewer than twice the top inputs cannot be told apart from all of them."""
    refused(ProbesDoNotFit, "17 probes, of which the top 9", inputs=X[:17])
    refused(ProbesDoNotFit, "60 probes, of which the top 31", top=31)


def test_labels_of_one_class_or_another_count() -> None:
    """Labels must tell something, one for each probe."""
    refused(ProbesDoNotFit, "all probes have the label 4", labels=np.full(60, 4))
    refused(ProbesDoNotFit, r"labels has the shape \[59\]; expected \[60\]", labels=np.arange(59))
    refused(ProbesDoNotFit, "labels are of float64", labels=np.ones(60))


def test_arrays_of_the_wrong_shape() -> None:
    """Concepts, masks, embeddings and directions say what was expected."""
    refused(ProbesDoNotFit, r"concepts has the shape \[59, 4\]; expected \[60, c\]",
            concepts=np.ones((59, 4), bool))  # fmt: skip
    refused(ProbesDoNotFit, r"concepts has the shape \[60\]", concepts=np.ones(60, bool))
    refused(ProbesDoNotFit, "other values than 0 and 1", concepts=np.full((60, 2), 0.5))
    refused(ProbesDoNotFit, r"masks has the shape \[60, 4\]", masks=np.ones((60, 4), bool))
    refused(ProbesDoNotFit, "embedding holds NaN", embedding=np.full((60, 3), np.nan))
    refused(ProbesDoNotFit, r"shape \[5, 11\]; expected finite rows of 12 units",
            values=["hidden"], given={"hidden": np.ones((5, 11))})  # fmt: skip
    refused(InvalidConfig, "'other', which is not looked at", given={"other": np.ones((5, 12))})
    refused(ProbesDoNotFit, "inputs hold NaN", inputs=np.full((60, 8), np.nan))


def test_values_that_are_not_finite() -> None:
    """Infinite activations are the model's fault, and are said to be."""
    burst = net(helper.make_node("Mul", ["hidden", "none"], ["burst"]))
    refused(ModelFailed, "'burst' holds NaN or infinite", burst, values=["burst"])


@pytest.mark.parametrize(
    ("field", "number"), [("directions", 63), ("rotations", 18), ("top", 1), ("max_layers", -1)]
)
def test_numbers_out_of_range(field: str, number: int) -> None:
    """The number and what is allowed are shown."""
    options: dict[str, Any] = {field: number}
    refused(InvalidConfig, f"{number} is out of range", **options)
