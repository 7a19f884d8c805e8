"""Bad input of every kind, over real gRPC: a specific error, and a server that lives on."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from onnx import helper
from safetensors.numpy import save as save_safetensors
from tests import models

from onnx_audit import Client, v1
from onnx_audit.errors import (
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ServiceError,
)
from onnx_audit.v1 import audit_pb2_grpc, blob_pb2_grpc, model_pb2_grpc, probe_set_pb2_grpc

DISTORTION = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=20))


def fields(error: ServiceError) -> list[str]:
    return [violation.field for violation in error.field_violations]


def upload(channel: grpc.Channel, content: bytes) -> str:
    """Stores a blob without the client's own checks."""
    digest = hashlib.sha256(content).hexdigest()
    request = v1.WriteRequest(sha256=digest, data=content, finish_write=True)
    assert blob_pb2_grpc.BlobServiceStub(channel).Write(iter([request])).complete
    return digest


def create_probe_set(channel: grpc.Channel, content: bytes) -> str:
    """Registers whatever bytes as a probe set; returns the error's message."""
    request = v1.CreateProbeSetRequest(probe_set=v1.ProbeSet(sha256=upload(channel, content)))
    with pytest.raises(grpc.RpcError) as caught:
        probe_set_pb2_grpc.ProbeSetServiceStub(channel).CreateProbeSet(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return str(caught.value.details())


@pytest.fixture(autouse=True)
def _lives_on(client: Client) -> Iterator[None]:
    """Whatever a test did, the server answers afterwards."""
    yield
    assert list(client.audits()) is not None


# Models


def test_a_file_that_is_not_onnx(channel: grpc.Channel) -> None:
    """Bytes that are no model are INVALID_MODEL."""
    digest = upload(channel, b"<html>definitely a model</html>" * 10)
    request = v1.CreateModelRequest(model=v1.Model(onnx_file=v1.ModelFile(sha256=digest)))
    with pytest.raises(grpc.RpcError) as caught:
        model_pb2_grpc.ModelServiceStub(channel).CreateModel(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "ONNX" in str(caught.value.details())


def test_a_truncated_file(channel: grpc.Channel) -> None:
    """The first half of a model is INVALID_MODEL, not a smaller model."""
    content = models.mlp().SerializeToString()
    digest = upload(channel, content[: len(content) // 2])
    request = v1.CreateModelRequest(model=v1.Model(onnx_file=v1.ModelFile(sha256=digest)))
    with pytest.raises(grpc.RpcError) as caught:
        model_pb2_grpc.ModelServiceStub(channel).CreateModel(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_unknown_operators_are_all_named(client: Client, tmp_path: Path) -> None:
    """The error lists every unknown operator with its node and opset."""
    nodes = [
        helper.make_node("FancyNorm", ["x"], ["a"], "first", domain="com.example"),
        helper.make_node("StringNormalizer", ["a"], ["b"], "second"),
        helper.make_node("Relu", ["b"], ["logits"], "third"),
    ]
    path = models.save(models.model(nodes, [None, 4], [None, 4]), tmp_path / "unknown.onnx")
    with pytest.raises(InvalidRequest) as caught:
        client.upload_model(path)
    text = str(caught.value)
    assert caught.value.reason == "UNSUPPORTED_OPERATOR"
    for part in ("FancyNorm", "first", "com.example", "StringNormalizer", "second", "17"):
        assert part in text, text
    assert "third" not in text


def test_a_model_whose_files_were_not_uploaded(channel: grpc.Channel) -> None:
    """FAILED_PRECONDITION names the blob."""
    digest = "1" * 64
    request = v1.CreateModelRequest(model=v1.Model(onnx_file=v1.ModelFile(sha256=digest)))
    with pytest.raises(grpc.RpcError) as caught:
        model_pb2_grpc.ModelServiceStub(channel).CreateModel(request)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert digest in str(caught.value.details())


@pytest.mark.parametrize(
    "path",
    ["../weights", "/etc/passwd", "a/../../b", "a\\b", "", "./a", "a\nb", "a\0", "d" * 256,
     "model.onnx", "model.onnx/a"],
)  # fmt: skip
def test_external_data_outside_the_model(channel: grpc.Channel, path: str) -> None:
    """A file of a model cannot be put anywhere but below it."""
    digest = upload(channel, b"weights")
    model = v1.Model(
        onnx_file=v1.ModelFile(sha256=digest),
        external_files=[v1.ModelFile(path=path, sha256=digest)],
    )
    with pytest.raises(grpc.RpcError) as caught:
        model_pb2_grpc.ModelServiceStub(channel).CreateModel(v1.CreateModelRequest(model=model))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "external_files[0].path" in str(caught.value.details())


def test_a_file_within_a_file(channel: grpc.Channel) -> None:
    """Paths of which one would have to be both file and folder are refused by name."""
    digest = upload(channel, b"weights")
    files = [v1.ModelFile(path=path, sha256=digest) for path in ("a/b/c", "d", "a/b")]
    model = v1.Model(onnx_file=v1.ModelFile(sha256=digest), external_files=files)
    with pytest.raises(grpc.RpcError) as caught:
        model_pb2_grpc.ModelServiceStub(channel).CreateModel(v1.CreateModelRequest(model=model))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    text = str(caught.value.details())
    assert text == "model.external_files[0].path: 'a/b/c' lies in 'a/b', which is a file"


def test_one_blob_named_a_thousand_times(channel: grpc.Channel) -> None:
    """A small upload cannot fill the disk with copies of itself."""
    blobs = blob_pb2_grpc.BlobServiceStub(channel)
    part = bytes(2 << 20)
    digest = hashlib.sha256(part + part).hexdigest()
    blobs.Write(
        v1.WriteRequest(sha256=digest, write_offset=at, data=part, finish_write=at > 0)
        for at in (0, len(part))
    )
    files = [v1.ModelFile(path=f"w{number}", sha256=digest) for number in range(1000)]
    model = v1.Model(onnx_file=v1.ModelFile(sha256=digest), external_files=files)
    with pytest.raises(grpc.RpcError) as caught:
        model_pb2_grpc.ModelServiceStub(channel).CreateModel(v1.CreateModelRequest(model=model))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert f"{1001 * 2 * len(part):,} bytes in the model's files" in str(caught.value.details())


# Probe sets


def test_an_empty_probe_set(channel: grpc.Channel) -> None:
    """A probe set without probes is refused when it is registered."""
    text = create_probe_set(channel, save_safetensors({"inputs": np.zeros((0, 16), np.float32)}))
    assert "probe" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(channel: grpc.Channel, value: float) -> None:
    """NaN and infinities are refused, and the probe is named."""
    inputs = models.probes(5, 16)
    inputs[3, 7] = value
    text = create_probe_set(channel, save_safetensors({"inputs": inputs}))
    assert "3" in text
    assert "nan" in text.lower() or "inf" in text.lower()


def test_bytes_that_are_no_probe_set(channel: grpc.Channel) -> None:
    """Anything but safetensors is refused, a pickle too."""
    for content in (b"\x80\x04\x95pickle", b"", b"\xff" * 100, b"PK\x03\x04" + bytes(50)):
        assert "safetensors" in create_probe_set(channel, content)


def test_labels_of_another_count(channel: grpc.Channel) -> None:
    """Both counts are shown."""
    content = save_safetensors({"inputs": models.probes(5, 16), "labels": np.arange(4)})
    text = create_probe_set(channel, content)
    assert "5" in text
    assert "4" in text


# Audits


def test_inputs_that_do_not_fit_the_model(client: Client, model: v1.Model) -> None:
    """Both shapes are shown, before anything runs."""
    probe_set = client.upload_probes(models.probes(5, 3, 5))
    with pytest.raises(InvalidRequest) as caught:
        client.audit(model, probe_set, auditors=DISTORTION)
    assert caught.value.reason == "PROBES_DO_NOT_FIT"
    assert "3, 5" in str(caught.value)
    assert "16" in str(caught.value)


def test_labels_beyond_the_classes(client: Client, model: v1.Model) -> None:
    """A label that the model has no class for is refused, before anything runs."""
    probe_set = client.upload_probes(models.probes(5, 16), labels=np.array([0, 1, 2, 3, 4]))
    with pytest.raises(InvalidRequest) as caught:
        client.audit(model, probe_set, auditors=DISTORTION)
    assert caught.value.reason == "PROBES_DO_NOT_FIT"
    assert "4" in str(caught.value)


def test_values_outside_the_declared_box(client: Client, model: v1.Model) -> None:
    """A box that the probes leave is refused with the extremes."""
    probe_set = client.upload_probes(models.probes(5, 16, low=-2.0, high=3.0))
    spec = v1.InputSpec(lower=[0.0], upper=[1.0])
    with pytest.raises(InvalidRequest) as caught:
        client.audit(model, probe_set, auditors=DISTORTION, input_spec=spec)
    assert caught.value.reason == "PROBES_DO_NOT_FIT"


def test_a_box_that_cannot_be_guessed(client: Client, model: v1.Model) -> None:
    """Without a box for values beyond [0, 1] the error says how to give one."""
    probe_set = client.upload_probes(models.probes(6, 16, low=-2.0, high=3.0))
    with pytest.raises(InvalidRequest, match="lower"):
        client.audit(model, probe_set, auditors=DISTORTION)


def test_an_unregistered_model(client: Client, probe_set: v1.ProbeSet) -> None:
    """FAILED_PRECONDITION names the model."""
    name = "models/" + "2" * 64
    with pytest.raises(FailedPrecondition) as caught:
        client.audit(name, probe_set, auditors=DISTORTION)
    assert name in str(caught.value)


def test_an_unregistered_probe_set(client: Client, model: v1.Model) -> None:
    """FAILED_PRECONDITION names the probe set."""
    name = "probes/" + "2" * 64
    with pytest.raises(FailedPrecondition) as caught:
        client.audit(model, name, auditors=DISTORTION)
    assert name in str(caught.value)


def test_a_request_id_with_another_request(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet
) -> None:
    """The same id with the same request is the same audit; with another one it is a conflict."""

    def ask(seed: int) -> v1.Audit:
        return client.audit(
            model, probe_set, auditors=DISTORTION, seed=seed, request_id="release-42"
        )

    first = ask(1)
    assert ask(1).name == first.name
    with pytest.raises(Conflict) as caught:
        ask(2)
    assert caught.value.reason == "REQUEST_ID_REUSED"


def test_peers_that_cannot_be_compared(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet, tmp_path: Path
) -> None:
    """No peer, an unknown one and one of another input are refused before anything runs."""

    def ask(*peers: v1.PeerModel) -> v1.Audit:
        configs = v1.AuditorConfigs(transfer=v1.TransferConfig(peers=peers))
        return client.audit(model, probe_set, auditors=configs)

    with pytest.raises(InvalidRequest) as invalid:
        ask()
    assert fields(invalid.value) == ["audit.auditors.transfer.peers"]
    name = "models/" + "5" * 64
    with pytest.raises(FailedPrecondition, match=name):
        ask(v1.PeerModel(model=name))
    with pytest.raises(InvalidRequest) as invalid:
        ask(v1.PeerModel(model=model.name), v1.PeerModel(model=model.name, label_map=[-2]))
    assert fields(invalid.value) == ["audit.auditors.transfer.peers[1].label_map"]
    with pytest.raises(InvalidRequest) as invalid:
        ask(v1.PeerModel(model=model.name, linear_head=v1.LinearHeadConfig(l2=-1)))
    assert fields(invalid.value) == ["audit.auditors.transfer.peers[0].linear_head.l2"]
    other = client.upload_model(models.save(models.mlp((15, 8, 4)), tmp_path / "other.onnx"))
    with pytest.raises(InvalidRequest) as invalid:
        ask(v1.PeerModel(model=other.name))
    assert invalid.value.reason == "PROBES_DO_NOT_FIT"
    assert fields(invalid.value) == ["audit.auditors.transfer.peers[0].input_spec"]


def test_transfer_runs_only_where_it_is_asked_for(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet
) -> None:
    """Without auditors in the request those run that need no further input."""
    audit = client.audit(model, probe_set, auditors=v1.AuditorConfigs())
    client.cancel(audit)
    assert not audit.auditors.HasField("transfer")
    assert audit.auditors.HasField("distortion")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (v1.DistortionConfig(budget=-1), "audit.auditors.distortion.budget"),
        (v1.DistortionConfig(budget=100_001), "audit.auditors.distortion.budget"),
        (v1.DistortionConfig(max_probes=-1), "audit.auditors.distortion.max_probes"),
        (v1.DistortionConfig(norms=[v1.NORM_L2, v1.NORM_L2]), "audit.auditors.distortion.norms"),
    ],
)
def test_configurations_out_of_range(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet, config: v1.DistortionConfig, field: str
) -> None:
    """The field at fault is named, before anything runs."""
    with pytest.raises(InvalidRequest) as caught:
        client.audit(model, probe_set, auditors=v1.AuditorConfigs(distortion=config))
    assert fields(caught.value) == [field]


def test_other_fields_out_of_range(
    channel: grpc.Channel, model: v1.Model, probe_set: v1.ProbeSet
) -> None:
    """Seed, timeout and names are checked too."""
    service = audit_pb2_grpc.AuditServiceStub(channel)
    for change, field in (
        ({"audit": {"seed": -1}}, "audit.seed"),
        ({"audit": {"timeout": "1000000000s"}}, "audit.timeout"),
        ({"audit": {"timeout": "-1s"}}, "audit.timeout"),
        ({"audit": {"inputSpec": {"probeLayout": 99}}}, "audit.input_spec.probe_layout"),
        ({"audit": {"displayName": "x" * 201}}, "audit.display_name"),
        ({"requestId": "x" * 101}, "request_id"),
        ({"requestId": "x\0"}, "request_id"),
    ):
        request = json_format.ParseDict(change, v1.CreateAuditRequest())
        request.audit.model = model.name
        request.audit.probe_set = probe_set.name
        with pytest.raises(grpc.RpcError) as caught:
            service.CreateAudit(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert str(caught.value.details()).startswith(f"{field}: ")


def test_unknown_and_malformed_names(client: Client) -> None:
    """Unknown audits are NOT_FOUND, malformed names INVALID_ARGUMENT, in every method."""
    for call in (client.get_audit, client.cancel, client.report, lambda a: list(client.watch(a))):
        with pytest.raises(NotFound):
            call("audits/20200101-000000-abcdef")
        with pytest.raises(InvalidRequest):
            call("audits/../secrets")


def test_unknown_models_and_probe_sets(channel: grpc.Channel) -> None:
    """Unknown models and probe sets are NOT_FOUND."""
    stub = model_pb2_grpc.ModelServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetModel(v1.GetModelRequest(name="models/" + "3" * 64))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    probe_sets = probe_set_pb2_grpc.ProbeSetServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        probe_sets.GetProbeSet(v1.GetProbeSetRequest(name="probes/" + "3" * 64))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def _token(content: str) -> str:
    return base64.urlsafe_b64encode(content.encode()).decode()


@pytest.mark.parametrize(
    "token",
    ["nonsense", "bm9uc2Vuc2U=", "W10=", "WzEsMl0=", "ÿ", _token('[true, "a"]'),
     _token(f'[{10**30}, "a"]'), _token('[-1, "a"]'), _token('[1, "\\ud800"]'),
     _token("[" * 100_000)],
)  # fmt: skip
def test_unknown_page_tokens(channel: grpc.Channel, token: str) -> None:
    """A token that no response had is refused by every list."""
    request = v1.ListModelsRequest(page_token=token)
    with pytest.raises(grpc.RpcError) as caught:
        model_pb2_grpc.ModelServiceStub(channel).ListModels(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "page_token" in str(caught.value.details())
