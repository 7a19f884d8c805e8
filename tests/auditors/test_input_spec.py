"""Input specs: what is filled in, what is refused, and the map beside plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from onnx_audit import v1
from onnx_auditors.errors import ProbesDoNotFit
from onnx_auditors.input_map import InputMap
from onnx_auditors.input_spec import resolve, sample_shape


def model(*shape: int, classes: int = 10, dtype: str = "float") -> v1.ModelSummary:
    return v1.ModelSummary(
        inputs=[v1.TensorInfo(name="x", dtype=dtype, shape=[1, *shape])],
        outputs=[v1.TensorInfo(name="y", dtype="float", shape=[1, classes])],
    )


def probes(
    *shape: int, dtype: str = "uint8", low: float = 0, high: float = 255, **more: Any
) -> v1.ProbeSummary:
    return v1.ProbeSummary(count=5, shape=shape, dtype=dtype, min=low, max=high, **more)


@pytest.mark.parametrize(
    ("probe", "target", "layouts"),
    [
        ((3, 8, 8), (3, 8, 8), ("CHW", "CHW")),
        ((8, 8, 3), (8, 8, 3), ("HWC", "HWC")),
        ((8, 9, 3), (3, 8, 9), ("HWC", "CHW")),
        ((3, 8, 9), (8, 9, 3), ("CHW", "HWC")),
        ((8, 9), (1, 8, 9), ("CHW", "CHW")),
        ((8, 9), (8, 9, 1), ("CHW", "HWC")),
        ((8, 9), (72, 1), ("FLAT", "FLAT")),
        ((8, 9), (72,), ("FLAT", "FLAT")),
        ((1, 8, 9), (72,), ("FLAT", "FLAT")),
        ((7,), (7,), ("FLAT", "FLAT")),
        ((7,), (-1,), ("FLAT", "FLAT")),
        ((8, 9, 3), (3, -1, -1), ("HWC", "CHW")),
    ],
)
def test_layouts_from_shapes(
    probe: tuple[int, ...], target: tuple[int, ...], layouts: tuple[str, str]
) -> None:
    """Layouts follow from shapes where only one can be meant, and a note says so."""
    spec, notes = resolve(v1.InputSpec(), model(*target), probes(*probe))
    names = [
        v1.Layout.Name(i).removeprefix("LAYOUT_") for i in (spec.probe_layout, spec.model_layout)
    ]
    assert tuple(names) == layouts
    assert any("Layouts were worked out" in note for note in notes)
    shape = sample_shape(spec, model(*target), probes(*probe))
    assert np.prod(shape) == np.prod(probe)
    assert all(t in {-1, s} for s, t in zip(shape, target, strict=True))


@pytest.mark.parametrize("target", [(192,), (64, 3), (3, 64)])
def test_ambiguous_layouts_are_asked_for(target: tuple[int, ...]) -> None:
    """Colour images for a flat input may be meant in two orders: the service asks."""
    with pytest.raises(ProbesDoNotFit, match="give probe_layout and model_layout"):
        resolve(v1.InputSpec(), model(*target), probes(8, 8, 3))
    flat = v1.InputSpec(probe_layout=v1.LAYOUT_FLAT, model_layout=v1.LAYOUT_FLAT)
    resolve(flat, model(*target), probes(8, 8, 3))


def test_shapes_that_do_not_fit() -> None:
    """A mismatch shows both shapes."""
    with pytest.raises(ProbesDoNotFit, match=r"\[8, 8\].*\[1, 28, 28\]"):
        resolve(v1.InputSpec(), model(1, 28, 28), probes(8, 8))


def test_uint8_defaults() -> None:
    """Bytes are divided by 255 and lie in [0, 1]; the notes say both."""
    spec, notes = resolve(v1.InputSpec(), model(7), probes(7))
    assert (spec.divisor, list(spec.lower), list(spec.upper)) == (255.0, [0.0], [1.0])
    assert (list(spec.mean), list(spec.std)) == ([0.0], [1.0])
    assert spec.channel_order == v1.CHANNEL_ORDER_SAME
    assert (spec.input_name, len(notes)) == ("x", 3)


def test_models_that_take_bytes() -> None:
    """They get stored bytes as they are, from a box of [0, 1]; a box of two levels is refused."""
    takes_bytes, byte_probes = model(7, dtype="uint8"), probes(7)
    spec, notes = resolve(v1.InputSpec(), takes_bytes, byte_probes)
    assert (spec.divisor, list(spec.upper)) == (255.0, [1.0])
    assert any("as they are stored" in note for note in notes)
    stored = np.arange(0, 252, 36, dtype=np.uint8)[None]
    input_map = InputMap(spec, takes_bytes, byte_probes)
    fed = input_map(torch.from_numpy(input_map.to_probe_space(stored)))
    np.testing.assert_allclose(fed.numpy(), stored, atol=1e-4)
    with pytest.raises(ProbesDoNotFit, match=r"is of uint8, .* 1 wide there; give std"):
        resolve(v1.InputSpec(), takes_bytes, probes(7, dtype="float32", high=0.9))
    own = v1.InputSpec(lower=[0], upper=[255])
    spec, _ = resolve(own, takes_bytes, probes(7, dtype="float32"))
    assert list(spec.std) == [1.0]


def test_float_defaults() -> None:
    """Floats in [0, 1] get that box as a guess; others need one."""
    spec, notes = resolve(v1.InputSpec(), model(7), probes(7, dtype="float32", high=0.9))
    assert (spec.divisor, list(spec.lower), list(spec.upper)) == (1.0, [0.0], [1.0])
    assert any("taken to be" in note for note in notes)
    with pytest.raises(ProbesDoNotFit, match=r"-2 to 3.*give lower and upper"):
        resolve(v1.InputSpec(), model(7), probes(7, dtype="float32", low=-2, high=3))


IMAGES = {"probe_layout": v1.LAYOUT_HWC, "model_layout": v1.LAYOUT_CHW}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_name": "z"}, "no input 'z'"),
        ({"mean": [0, 0]}, "mean has 2 values; expected 1 or 3"),
        ({"std": [1, 0, 1]}, "std"),
        ({"std": [-1]}, "std"),
        ({"mean": [float("nan")]}, "finite"),
        ({"lower": [0]}, "give lower and upper"),
        ({"lower": [0, 0, 1], "upper": [1]}, "not below"),
        ({"lower": [0.1], "upper": [1]}, "from 0 to 1 .*outside the box"),
        ({"lower": [0], "upper": [0.9]}, "outside the box"),
        ({"divisor": -1}, "divisor"),
        ({"probe_layout": v1.LAYOUT_CHW, "model_layout": v1.LAYOUT_CHW}, "CHW and CHW"),
    ],
)
def test_refused_fields(fields: dict[str, Any], words: str) -> None:
    """A field that cannot be right is refused by name."""
    with pytest.raises(ProbesDoNotFit, match=words):
        resolve(v1.InputSpec(**fields), model(3, 8, 9), probes(8, 9, 3))


def test_reversal_needs_channels() -> None:
    """There is nothing to reverse in flat or grey inputs."""
    spec = v1.InputSpec(channel_order=v1.CHANNEL_ORDER_REVERSED)
    for target, probe in (((7,), (7,)), ((1, 8, 9), (8, 9))):
        with pytest.raises(ProbesDoNotFit, match="reversed"):
            resolve(spec, model(*target), probes(*probe))


def test_labels_beyond_the_classes() -> None:
    """A label that the output has no score for is refused."""
    with pytest.raises(ProbesDoNotFit, match=r"labels reach 10.*10 classes"):
        resolve(v1.InputSpec(), model(7), probes(7, has_labels=True, max_label=10))


def test_labels_where_the_file_does_not_say_how_many_classes() -> None:
    """One score is two classes; of labels, and of several outputs, the file says nothing here."""
    two = probes(7, has_labels=True, max_label=1)
    three = probes(7, has_labels=True, max_label=2)
    single = model(7, classes=1)
    resolve(v1.InputSpec(), single, two)
    with pytest.raises(ProbesDoNotFit, match=r"labels reach 2.*2 classes"):
        resolve(v1.InputSpec(), single, three)
    labels = model(7, classes=1)
    labels.outputs[0].dtype = "int64"
    resolve(v1.InputSpec(), labels, three)
    several = model(7, classes=1)
    several.outputs.add(name="scores", dtype="float", shape=[1, 10])
    resolve(v1.InputSpec(), several, three)


MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


@pytest.mark.parametrize("order", [v1.CHANNEL_ORDER_SAME, v1.CHANNEL_ORDER_REVERSED])
@pytest.mark.parametrize("target", ["CHW", "HWC"])
@pytest.mark.parametrize("source", ["CHW", "HWC"])
def test_map_of_images(source: str, target: str, order: v1.ChannelOrder.ValueType) -> None:
    """The map is (x - mean) / std in the model's layout, per channel in the model's order."""
    shapes = {"CHW": (3, 4, 5), "HWC": (4, 5, 3)}
    spec = v1.InputSpec(
        probe_layout=v1.Layout.Value(f"LAYOUT_{source}"),
        model_layout=v1.Layout.Value(f"LAYOUT_{target}"),
        channel_order=order,
        mean=MEAN,
        std=STD,
        lower=[0, 0.1, 0.2],
        upper=[1],
    )
    summary, described = model(*shapes[target]), probes(*shapes[source], low=100)
    mapping = InputMap(resolve(spec, summary, described)[0], summary, described)
    raw = np.random.default_rng(0).integers(100, 256, (2, *shapes[source]), dtype=np.uint8)

    x = raw.astype(np.float64) / 255
    image = x if source == "CHW" else np.moveaxis(x, 3, 1)
    if order == v1.CHANNEL_ORDER_REVERSED:
        image = image[:, ::-1]
    expected = (image - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    if target == "HWC":
        expected = np.moveaxis(expected, 1, 3)

    ours = mapping(torch.from_numpy(mapping.to_probe_space(raw)))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    lower = np.broadcast_to(mapping.lower, shapes[source])
    per_channel = lower if source == "CHW" else np.moveaxis(lower, 2, 0)
    np.testing.assert_allclose(per_channel[:, 0, 0], [0, 0.1, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("probe", "target"), [((4, 5), (20, 1)), ((4, 5), (1, 4, 5)), ((20,), (20,))]
)
def test_map_that_keeps_the_order(probe: tuple[int, ...], target: tuple[int, ...]) -> None:
    """A reshape keeps the row-major order, and its gradient is 1 / std."""
    spec = v1.InputSpec(mean=[0.5], std=[0.25])
    summary, described = model(*target), probes(*probe)
    mapping = InputMap(resolve(spec, summary, described)[0], summary, described)
    x = torch.rand(3, *probe, requires_grad=True)
    y = mapping(x)
    assert y.shape == (3, *target)
    np.testing.assert_allclose(y.detach().flatten(), (x.detach().flatten() - 0.5) * 4, rtol=1e-5)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert bool((gradient == 4).all())


def test_flat_lists_per_entry() -> None:
    """For flat inputs each entry is a channel."""
    mean = [float(i) for i in range(6)]
    spec = v1.InputSpec(mean=mean, lower=[-1.0] * 6, upper=[float(i + 1) for i in range(6)])
    summary, described = model(6), probes(6, dtype="float32", high=5)
    mapping = InputMap(resolve(spec, summary, described)[0], summary, described)
    np.testing.assert_allclose(mapping(torch.zeros(1, 6))[0], [-m for m in mean])
    assert mapping.upper.tolist() == [1, 2, 3, 4, 5, 6]
