"""What `distortion` found beside what is proved: no example may be nearer than a certificate.

Needs no torch: a report is put together where the network is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_audit import v1
from onnx_auditors.errors import BoundsCrossed
from onnx_auditors.estimates import mean, quantile

SEARCHED = (v1.PROBE_OUTCOME_CONFIRMED, v1.PROBE_OUTCOME_UNCONFIRMED, v1.PROBE_OUTCOME_NOT_FOUND)
"""Outcomes of probes that are answered rightly and were searched."""
_BOOTSTRAP_SEED = 3


def bootstrap_seed(seed: int, norm: v1.Norm.ValueType) -> int:
    """Returns the seed of the resampling of one norm's distances in an audit with a seed."""
    return int(np.random.SeedSequence([seed, _BOOTSTRAP_SEED, norm]).generate_state(1)[0])


def join(report: v1.Report) -> None:
    """Writes into the sections of `distortion` and `lipschitz` what they say together.

    A certificate of the network's amplification bounds an example's distance from below, towards
    any class; where it is better than what `distortion` proved by itself, it takes its place.

    Raises:
        BoundsCrossed: A confirmed example lies within a certified radius.
    """
    found = {norm.norm: norm for norm in report.distortion.norms}
    for certificates in report.lipschitz.certificates:
        norm = found.get(certificates.norm)
        if norm is not None:
            _join(norm, certificates, bootstrap_seed(report.provenance.seed, norm.norm))


def _join(norm: v1.NormDistortion, certificates: v1.LipschitzCertificates, seed: int) -> None:
    rows = {row.probe: row for row in norm.probes}
    widths = []
    for certificate in certificates.probes:
        row = rows.get(certificate.probe)
        if row is None:
            continue
        _check(row, certificate, norm.norm)
        certificate.found = row.distance
        if row.outcome not in SEARCHED or not certificate.radius > 0:
            continue
        if not row.HasField("certified") or row.certified.lower < certificate.radius:
            row.certified.lower = certificate.radius
            row.certified.method = v1.CERTIFICATE_METHOD_LIPSCHITZ
        if math.isfinite(row.distance):
            widths.append(row.distance / certificate.radius)
    certificates.sandwich.CopyFrom(quantile(np.array(widths, dtype=np.float64), 1 / 2, "1"))
    summary = certified(norm.probes, seed)
    if summary is not None:
        norm.certified.CopyFrom(summary)


def _check(
    row: v1.ProbeDistortion, certificate: v1.ProbeCertificate, norm: v1.Norm.ValueType
) -> None:
    if row.distance < certificate.radius:
        raise BoundsCrossed(
            f"probe {row.probe}: an example at distance {row.distance:.9g} in {v1.Norm.Name(norm)} "
            "was confirmed by ONNX Runtime, and it is certified "
            f"({certificate.method}) that there is none below {certificate.radius:.9g}; one of the "
            "two is wrong, so the audit stops",
            probe=str(row.probe),
            norm=v1.Norm.Name(norm),
        )


def certified(rows: Sequence[v1.ProbeDistortion], seed: int) -> v1.CertifiedDistortion | None:
    """Returns found distances beside what is proved; None where nothing is.

    Args:
        rows: Results of the probes in one norm.
        seed: Seed of the resampling.
    """
    chosen = [row for row in rows if row.HasField("certified") and row.outcome in SEARCHED]
    if not chosen:
        return None
    lower = np.array([row.certified.lower for row in chosen])
    distance = np.array([row.distance for row in chosen])
    optimum = np.array(
        [row.certified.optimum if row.certified.HasField("optimum") else math.nan for row in chosen]
    )
    confirmed = np.array([row.outcome == v1.PROBE_OUTCOME_CONFIRMED for row in chosen])
    bounded, compared = confirmed & (lower > 0), confirmed & (optimum > 0)
    return v1.CertifiedDistortion(
        certified=int((lower > 0).sum()),
        found_over_lower=mean(distance[bounded] / lower[bounded], "1", seed),
        exact=int((~np.isnan(optimum)).sum()),
        found_over_optimum=mean(distance[compared] / optimum[compared], "1", seed),
        none_exists=int(np.isinf(lower).sum()),
    )
