"""Whole audits in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from safetensors.numpy import load as from_safetensors
from tests.support import graph_model

from onnx_audit import v1
from onnx_auditors.context import Context
from onnx_auditors.distortion.auditor import DistortionAuditor

COUNT, WIDTH, CLASSES = 40, 8, 4

Tensors = dict[str, npt.NDArray[Any]]


class Store:
    """Keeps artefacts in memory, by their digests."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def __call__(self, content: Iterable[bytes], media_type: str) -> v1.BlobRef:
        """Keeps an artefact."""
        whole = b"".join(content)
        digest = hashlib.sha256(whole).hexdigest()
        self.content[digest] = whole
        return v1.BlobRef(sha256=digest, size_bytes=len(whole), media_type=media_type)


def linear_model(weights: npt.NDArray[Any]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["z"], transB=1),
        helper.make_node("Softmax", ["z"], ["y"]),
    ]
    return graph_model(nodes, {"x": [1, WIDTH]}, {"w": weights.astype(np.float32)})


def audit(
    context: Context, config: v1.DistortionConfig | None = None
) -> tuple[v1.DistortionSection, dict[str, Tensors]]:
    """Runs every shard and merges; returns the section and its artefacts by digest."""
    auditor, store = DistortionAuditor(), Store()
    resolved = auditor.resolve(config or v1.DistortionConfig(budget=40), context)
    plan = auditor.plan(resolved, context)
    units = {v1.NORM_L2: "L2", v1.NORM_LINF: "Linf", v1.NORM_L1: "L1", v1.NORM_L0: "L0"}
    seen: list[tuple[float, float, str]] = []

    def progress(
        done: float, total: float, running: v1.Estimate | None = None, label: str = ""
    ) -> None:
        assert running is not None or done < total
        assert running is None or label == f"median {running.unit}"
        seen.append((done, total, label))

    partials = [auditor.run(resolved, context, i, progress) for i in range(plan.shards)]
    assert sum(done for done, total, _ in seen if done == total) == plan.items
    assert {label for *_, label in seen} == {f"median {units[norm]}" for norm in resolved.norms}
    result = auditor.merge(resolved, context, partials, store)
    return result, {digest: from_safetensors(content) for digest, content in store.content.items()}
