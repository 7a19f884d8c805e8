"""A reference embedding that is a value of another model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.context import Context, open_network, open_session
from onnx_auditors.errors import AuditError, InvalidConfig
from onnx_auditors.input_spec import sample_shape
from onnx_auditors.network import Network, require
from onnx_auditors.network.parity import parity
from onnx_auditors.transfer import peer_spec
from onnx_auditors.transfer.resizing import PeerMap
from onnx_auditors.units import values
from onnx_auditors.units.source import Embedding, Indices, Single

_FIELD = "embedding"
_PARITY_PROBES = 64


def of_model(config: v1.UnitReference, context: Context) -> Embedding:
    """Opens the model of a reference embedding.

    Its network is compared with ONNX Runtime before anything is taken from it.

    Raises:
        AuditError: The model cannot be used, does not fit the probes, or has no such value; the
            field at fault is the metadata's `field`.
    """
    path = context.peers.get(config.model)
    if path is None:
        raise InvalidConfig(f"the file of {config.model!r} is missing", field=f"{_FIELD}.model")
    peer = v1.PeerModel(
        model=config.model,
        input_spec=config.input_spec if config.HasField("input_spec") else None,
        input_height=config.input_height,
        input_width=config.input_width,
    )
    resolved: list[peer_spec.PeerSpec] = []

    def shape(model: v1.ModelSummary) -> Sequence[int]:
        resolved[:] = [peer_spec.resolve(peer, model, context.summary, context.spec, f"{_FIELD}.")]
        return sample_shape(resolved[0].spec, model, resolved[0].probes)

    try:
        network = open_network(path, context.device, context.network.limits, shape)
        mapped = PeerMap(resolved[0], network.summary, context.input_map, context.device)

        def feed(rows: Indices) -> Tensor:
            with torch.no_grad():
                return mapped(torch.from_numpy(context.inputs(rows)).to(context.device))

        first = feed(np.arange(min(_PARITY_PROBES, context.summary.count)))
        session = open_session(path, network, context.device, context.session.threads)
        require(parity(network, session, first.cpu().numpy()))
        name = config.value or _before_the_last(network)
        (value,) = values.describe(network, [name], first[:2])
    except AuditError as error:
        error.args = (f"the model of the reference embedding: {error}",)
        if error.metadata.get("field") == "values":
            error.metadata["field"] = f"{_FIELD}.value"
        error.metadata.setdefault("field", f"{_FIELD}.model")
        raise

    def features(rows: Indices) -> Single:
        with torch.no_grad():
            found = network.values(feed(rows), [name])[name]
        means: Single = value.units(found).mean(1).cpu().numpy()
        return means

    return Embedding(f"value '{name}' of {config.model}", features)


def _before_the_last(network: Network) -> str:
    """Returns what the last linear layer with weights reads; the answer where it is the first."""
    linear = [
        layer
        for layer in values.layers_of(network)
        if layer.op_type in values.WEIGHTED and layer.weights and len(layer.inputs) == 1
    ]
    if not linear or linear[-1].inputs[0] == network.input.name:
        return network.output
    return linear[-1].inputs[0]
