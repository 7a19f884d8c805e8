"""Arrays and models that `units` is given, through a real server; workers that share an audit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from safetensors.numpy import save_file
from tests.auditors.units import planted
from tests.auditors.units.planted import CONCEPTS, SIDE, World
from tests.service import ServiceProcess

from onnx_audit import Client, v1
from onnx_audit.errors import ConfigError, InvalidRequest, ServiceError
from onnx_auditors import units

COHERENCE, CONCEPT, IOU = (
    v1.UNIT_SCORE_KIND_COHERENCE,
    v1.UNIT_SCORE_KIND_CONCEPT,
    v1.UNIT_SCORE_KIND_IOU,
)
BOX = v1.InputSpec(lower=[0.0], upper=[1.0])
SIZES: dict[str, Any] = {"directions": 64, "rotations": 19, "bases": [v1.UNIT_BASIS_PCA]}
SEED = 5


@pytest.fixture(scope="module")
def world() -> World:
    return planted.world(240)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A server with a worker of one thread, as this process has."""
    folder = tmp_path_factory.mktemp("service") / "data"
    with ServiceProcess(folder, "--threads", "1") as process:
        yield process


def rectified(world: World) -> onnx.ModelProto:
    """A rectified convolution "seen" with a unit per patch, and a head."""
    model = planted.convolution(world)
    model.graph.node[1].input[0] = "seen"
    model.graph.node.insert(1, helper.make_node("Relu", ["map"], ["seen"]))
    return model


def masks_of(world: World) -> npt.NDArray[np.uint8]:
    masks = np.zeros((len(world.images), CONCEPTS, SIDE, SIDE), dtype=np.uint8)
    where = np.abs(world.templates).reshape(CONCEPTS, 3, SIDE, SIDE).max(1) > 0
    masks[world.concepts] = where[np.nonzero(world.concepts)[1]]
    return masks


def test_given_arrays_and_models_reach_the_auditor(
    client: Client, world: World, tmp_path: Path
) -> None:
    """The section is that of the same arrays in memory; features are ONNX Runtime's."""
    onnx.save(rectified(world), tmp_path / "audited.onnx")
    onnx.save(planted.gaussian(3, 24), tmp_path / "other.onnx")
    concepts, masks = world.concepts.astype(np.uint8), masks_of(world)
    matrix = planted.rotation(CONCEPTS, 3).astype(np.float32)
    np.savez(tmp_path / "given.npz", concepts=concepts, masks=masks)
    save_file({"seen": matrix}, tmp_path / "directions.safetensors")
    config = v1.UnitsConfig(
        values=["seen"],
        concepts=str(tmp_path / "given.npz"),
        masks=str(tmp_path / "given.npz"),
        embedding=v1.UnitReference(model=str(tmp_path / "other.onnx"), value="fc1"),
        given_directions=str(tmp_path / "directions.safetensors"),
        **SIZES,
    )
    audit = client.audit(
        tmp_path / "audited.onnx",
        world.images,
        auditors=v1.AuditorConfigs(units=config),
        input_spec=BOX,
        seed=SEED,
    )
    section = client.report(client.wait(audit)).units
    (layer,) = section.layers
    assert section.config.concepts.startswith("blobs/")
    assert section.embedding.source.startswith("value 'fc1' of models/")

    proto = planted.gaussian(3, 24)
    proto.graph.output.extend([helper.make_empty_tensor_value_info("fc1")])
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (features,) = session.run(["fc1"], {"x": world.images})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = units.measure(
        planted.opened(rectified(world)),
        world.images,
        values=["seen"],
        concepts=concepts,
        masks=masks,
        embedding=features,
        given={"seen": matrix},
        seed=SEED,
        **SIZES,
    )
    torch.set_num_threads(threads)
    (same,) = expected.layers
    kinds = [score.kind for score in layer.scores]
    assert kinds == [score.kind for score in same.scores] == [CONCEPT, IOU, COHERENCE]
    for found, wanted in zip(layer.scores, same.scores, strict=True):
        exact = found.kind != COHERENCE
        for figure in ("index_auc", "natural_mean", "random_mean"):
            a, b = (getattr(score, figure).value for score in (found, wanted))
            assert a == b if exact else a == pytest.approx(b, abs=0.01)
    (bases,) = ({b.basis: b for b in each.bases} for each in (layer,))
    assert bases[v1.UNIT_BASIS_GIVEN].count == CONCEPTS
    assert layer.scores[1].index_auc.value > 0.9


@pytest.mark.parametrize(
    ("field", "arrays", "said"),
    [
        (
            "concepts",
            {"concepts": np.zeros((3, 2), np.uint8)},
            r"shape \[3, 2\].*\[240, concepts\]",
        ),
        ("masks", {"masks": np.zeros((240, 2, 4), np.uint8)}, r"\[240, concepts, height, width\]"),
        ("embedding.features", {"features": np.zeros((240,), np.float32)}, r"\[240, any\]"),
        ("given_directions", {"seen": np.zeros((4,), np.float32)}, r"\[any, units\]"),
    ],
)
def test_arrays_of_another_shape_are_refused_at_once(
    client: Client, world: World, tmp_path: Path, field: str, arrays: dict[str, Any], said: str
) -> None:
    """The field, what was found and what is allowed."""
    onnx.save(rectified(world), tmp_path / "audited.onnx")
    save_file(arrays, tmp_path / "wrong.safetensors")
    config = v1.UnitsConfig()
    if field == "embedding.features":
        config.embedding.features = str(tmp_path / "wrong.safetensors")
    else:
        setattr(config, field, str(tmp_path / "wrong.safetensors"))
    with pytest.raises(InvalidRequest, match=said) as caught:
        client.audit(
            tmp_path / "audited.onnx", world.images, auditors=v1.AuditorConfigs(units=config)
        )
    (violation,) = caught.value.field_violations
    assert violation.field == f"audit.auditors.units.{field}"


def test_references_that_cannot_be_used_are_refused(
    client: Client, world: World, tmp_path: Path
) -> None:
    """The audited model itself, neither model nor features, blobs and files that are not there."""
    model = client.upload_model(_saved(rectified(world), tmp_path / "audited.onnx"))
    probes = client.upload_probes(world.images)

    def ask(**fields: Any) -> v1.Audit:
        config = v1.AuditorConfigs(units=v1.UnitsConfig(values=["seen"], **SIZES, **fields))
        return client.audit(model, probes, auditors=config, input_spec=BOX)

    with pytest.raises(InvalidRequest, match="is the audited model"):
        ask(embedding=v1.UnitReference(model=model.name))
    with pytest.raises(InvalidRequest, match="either a model or features"):
        ask(embedding=v1.UnitReference(value="x"))
    with pytest.raises(ServiceError, match="is not there; upload it") as missing:
        ask(concepts=f"blobs/{'0' * 64}")
    assert missing.value.reason == "BLOB_MISSING"
    with pytest.raises(ConfigError, match="no such file"):
        ask(concepts=str(tmp_path / "nowhere.npz"))


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


@pytest.mark.slow
def test_one_worker_and_two_give_the_same_section(
    service: ServiceProcess, client: Client, world: World, tmp_path: Path
) -> None:
    """Shards of an audit that two processes share make the section that one makes."""
    model = client.upload_model(_saved(rectified(world), tmp_path / "audited.onnx"))
    probes = client.upload_probes(world.images, labels=world.labels)
    config = v1.AuditorConfigs(units=v1.UnitsConfig(**SIZES))

    def section() -> bytes:
        audit = client.audit(model, probes, auditors=config, input_spec=BOX, seed=SEED)
        found = client.report(client.wait(audit)).units
        assert len(found.layers) == 1
        return found.SerializeToString(deterministic=True)

    alone = section()
    arguments = ("--threads", "1", "--worker-name", "second")
    with ServiceProcess(service.data, *arguments, command="worker") as worker:
        assert section() == alone
        assert any(line.get("event") == "task done" for line in worker.log_lines())
