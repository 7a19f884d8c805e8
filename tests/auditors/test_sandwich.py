"""What was found beside what is proved, in reports written by hand."""

from __future__ import annotations

import math

import pytest

from onnx_audit import v1
from onnx_auditors import sandwich
from onnx_auditors.errors import BoundsCrossed

CONFIRMED, NOT_FOUND = v1.PROBE_OUTCOME_CONFIRMED, v1.PROBE_OUTCOME_NOT_FOUND


def report(distance: float = 2.0) -> v1.Report:
    """Probes 3, 5, 8 and 9 in L2; the first at a distance of choice."""
    norm = v1.NormDistortion(norm=v1.NORM_L2)
    norm.probes.add(probe=3, outcome=CONFIRMED, distance=distance)
    exact = v1.CertifiedRadius(lower=1.9, optimum=2.0, method=v1.CERTIFICATE_METHOD_EXACT)
    norm.probes.add(probe=5, outcome=CONFIRMED, distance=2.0, certified=exact)
    norm.probes.add(probe=8, outcome=NOT_FOUND, distance=math.inf)
    norm.probes.add(probe=9, outcome=v1.PROBE_OUTCOME_MISCLASSIFIED, distance=0.0)
    certificates = v1.LipschitzCertificates(norm=v1.NORM_L2)
    for probe, radius in ((3, 0.5), (5, 1.0), (8, 0.25), (9, 0.0), (11, 0.75)):
        certificates.probes.add(probe=probe, radius=radius, method="crown", found=math.nan)
    result = v1.Report(provenance=v1.Provenance(seed=7))
    result.distortion.norms.append(norm)
    result.distortion.norms.add(norm=v1.NORM_LINF)
    result.lipschitz.certificates.append(certificates)
    return result


def test_both_sides_are_written() -> None:
    """Certificates get the distance found, probes the better proof, both their mean widths."""
    joined = report()
    sandwich.join(joined)
    certificates = joined.lipschitz.certificates[0]
    assert [row.found for row in certificates.probes][:4] == [2.0, 2.0, math.inf, 0.0]
    assert math.isnan(certificates.probes[4].found)
    # The medians' convention: the smaller of two. 2 / 1 and 2 / 0.5.
    assert (certificates.sandwich.value, certificates.sandwich.count) == (2.0, 2)
    norm = joined.distortion.norms[0]
    first, second, third, fourth = norm.probes
    assert (first.certified.lower, first.certified.method) == (
        0.5, v1.CERTIFICATE_METHOD_LIPSCHITZ,
    )  # fmt: skip
    assert (second.certified.lower, second.certified.method) == (1.9, v1.CERTIFICATE_METHOD_EXACT)
    assert third.certified.lower == 0.25
    assert not fourth.HasField("certified")
    summary = norm.certified
    assert (summary.certified, summary.exact, summary.none_exists) == (3, 1, 0)
    assert summary.found_over_lower.value == pytest.approx((2 / 0.5 + 2 / 1.9) / 2)
    assert summary.found_over_optimum.value == 1.0
    assert not joined.distortion.norms[1].HasField("certified")


def test_a_contradiction_ends_the_audit() -> None:
    """An example inside a certified radius is named with its probe and norm."""
    with pytest.raises(BoundsCrossed, match="probe 3: an example at distance") as caught:
        sandwich.join(report(distance=0.4))
    assert caught.value.metadata == {"probe": "3", "norm": "NORM_L2"}
