"""The parts against brute force, closed forms and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from tests.auditors.units import planted

from onnx_audit import v1
from onnx_auditors.units import (
    calibration,
    connectivity,
    directions,
    lists,
    receptive,
    secondary,
    sprites,
    statistics,
    thinning,
)
from onnx_auditors.units.concepts import Concepts, best_auroc, best_iou
from onnx_auditors.units.source import Indices
from onnx_auditors.units.top import Top, joined, pack, unpack

FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)


@given(st.lists(FLOATS, min_size=2, max_size=40), st.lists(FLOATS, min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_index_is_mann_whitney(natural: list[float], random: list[float]) -> None:
    """P(natural > random) + P(tie) / 2 is scipy's U over the number of pairs."""
    u = stats.mannwhitneyu(natural, random).statistic
    found = statistics.index(np.array(natural), np.array(random))
    assert found == pytest.approx(u / (len(natural) * len(random)))


@given(
    st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, -0.0, 1.0, 2.5]), min_size=30, max_size=30),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 12),
    st.integers(1, 30),
)
@settings(max_examples=80, deadline=None)
def test_streamed_top_lists_are_sorted_lists(
    rows: list[list[float]], width: int, block: int
) -> None:
    """Whatever the blocks, the lists are those of a stable sort of everything, ties included."""
    values = torch.tensor(rows)
    parts = []
    for begin in range(0, 30, 2 * block):
        top = Top(len(rows), width, torch.device("cpu"))
        for at in range(begin, min(begin + 2 * block, 30), block):
            top.add(0, values[:, at : at + block], at)
        parts.append(top.keys.numpy())
    expected = np.argsort(-values.numpy(), axis=1, kind="stable")[:, :width]
    assert (joined(parts, width) == expected).all()


@given(st.lists(FLOATS, min_size=2, max_size=20))
@settings(max_examples=60, deadline=None)
def test_keys_sort_like_their_values(values: list[float]) -> None:
    """Packed keys have the order of the floats, and give them back."""
    single = torch.tensor(values)
    keys = pack(single, torch.arange(len(values)))
    back, ranks = unpack(keys)
    assert (back == single).all()
    assert (ranks == torch.arange(len(values))).all()
    expected = np.argsort(-single.numpy(), kind="stable")
    assert list(np.argsort(-keys.numpy())) == list(expected)


def test_best_concepts_are_those_of_scikit_learn() -> None:
    """The best AUROC and its concept, over all concepts with ten probes on each side."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    labels[:4] = 9  # too few
    values = rng.standard_normal((7, 300)) + (labels == 3) * np.linspace(0, 3, 7)[:, None]
    concepts = Concepts.of(labels, None, 0)
    assert concepts is not None
    assert list(concepts.names) == [0, 1, 2, 3, 4]
    scores, best = best_auroc(torch.tensor(values).float(), concepts, rng, parts=True)
    for row, (found, name) in enumerate(zip(scores, best, strict=True)):
        chance = 0.5 + concepts.chance
        all_of = [roc_auc_score(labels == c, values[row].astype("f4")) for c in range(5)]
        assert found[0] == pytest.approx((max(all_of) - chance) / (1 - chance))
        assert name == np.argmax(all_of)
        kept = np.arange(300) % 8 != 5
        part = max(roc_auc_score(labels[kept] == c, values[row, kept]) for c in range(5))
        level = 0.5 + concepts.chance * np.sqrt(8 / 7)
        assert found[6] == pytest.approx((part - level) / (1 - level), abs=1e-6)


def test_chance_is_zero_with_ties_and_without() -> None:
    """Values that know nothing score 0 on average, also where most of them are equal."""
    rng = np.random.default_rng(1)
    concepts = Concepts.of(rng.integers(0, 20, 600), None, 0)
    assert concepts is not None
    values = rng.standard_normal((1500, 600))
    for tied in (values, np.maximum(values - 1.5, 0)):
        scores, _ = best_auroc(torch.tensor(tied).float(), concepts, rng, parts=False)
        assert abs(scores.mean()) < 4 * scores.std() / np.sqrt(len(scores)) + 0.002


def test_overlap_is_brute_force() -> None:
    """The best intersection over union, counted place by place."""
    rng = np.random.default_rng(2)
    values, masks = rng.standard_normal((6, 90)), rng.random((90, 4)) < 0.2
    scores, best = best_iou(torch.tensor(values), torch.tensor(masks), rng)
    for row in range(6):
        each = []
        for concept in range(4):
            size = masks[:, concept].sum()
            largest = set(np.argsort(-values[row])[:size])
            where = set(np.flatnonzero(masks[:, concept]))
            each.append(len(largest & where) / len(largest | where))
        assert scores[row] == pytest.approx(max(each))
        assert best[row] == np.argmax(each)


def test_selectivity_is_its_formula() -> None:
    """By loops: activity above the mean, per label, of all probes and without an eighth."""
    rng = np.random.default_rng(11)
    labels = rng.integers(3, 7, 200)
    values = rng.standard_normal((6, 200)) + (labels == 5) * np.linspace(0, 4, 6)[:, None]
    scores, best = secondary.selectivity(torch.tensor(values).float(), labels)
    for row in range(6):
        active = np.maximum(values[row] - values[row].mean(), 0)
        for column in range(9):
            kept = np.arange(200) % 8 != column - 1
            means = sorted((active[kept & (labels == c)].mean(), c) for c in range(3, 7))
            others = np.mean([mean for mean, _ in means[:-1]])
            expected = (means[-1][0] - others) / (means[-1][0] + others)
            assert scores[row, column] == pytest.approx(expected, rel=1e-5)
            assert column or best[row] == means[-1][1]
    only_one = torch.from_numpy(labels == 4).float()[None]
    assert secondary.selectivity(only_one, labels)[0][0, 0] == pytest.approx(1)


def test_two_afc_is_counted_pair_by_pair() -> None:
    """Every pair of asked inputs, judged by its mean cosines with the shown ones."""
    rng = np.random.default_rng(12)
    points = rng.standard_normal((90, 4)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    values = np.concatenate([rng.standard_normal((5, 90)), points.T[:1]])
    found = secondary.two_afc(torch.tensor(values).float(), points)
    for row, score in zip(values, found, strict=True):
        falling = np.argsort(-row)
        tops, bottoms = falling[:18], falling[::-1][:18]

        def likeness(asked: int, tops: Indices = tops, bottoms: Indices = bottoms) -> float:
            near = np.mean([points[asked] @ points[shown] for shown in tops[::2]])
            far = np.mean([points[asked] @ points[shown] for shown in bottoms[::2]])
            return float(near - far)

        right = [likeness(a) > likeness(b) for a in tops[1::2] for b in bottoms[1::2]]
        assert score == pytest.approx(2 * np.mean(right) - 1)
    assert found[-1] == 1


def test_list_scores_are_averages_over_pairs() -> None:
    """Label and coherence scores, pair by pair, against all pairs of probes."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 80)
    points = rng.standard_normal((80, 6)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    ranks = np.stack([rng.permutation(80)[:12] for _ in range(5)])
    first = lists.first(ranks, 9)
    cosine = points.astype(float) @ points.T.astype(float)
    same = (labels[:, None] == labels).astype(float)
    for score, table in ((lists.LabelScore(labels), same), (lists.CoherenceScore(points), cosine)):
        off = ~np.eye(80, dtype=bool)
        chance = table[off].mean()
        for row, found in zip(ranks, score(ranks, first), strict=True):
            pairs = [table[a, b] for a in row[:9] for b in row[:9] if a != b]
            assert found == pytest.approx((np.mean(pairs) - chance) / (1 - chance), abs=1e-5)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    """For eight equal groups the delete-a-group error is that of the mean of group means."""
    groups = np.random.default_rng(4).standard_normal((8, 50)).mean(1)
    without = np.array([np.delete(groups, i).mean() for i in range(8)])
    assert statistics.jackknife_error(without) == pytest.approx(groups.std(ddof=1) / np.sqrt(8))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_corrections_are_those_of_the_books(p: list[float]) -> None:
    """Benjamini and Hochberg's as in scipy, Holm's by its definition."""
    array = np.array(p)
    expected = stats.false_discovery_control(array)
    assert statistics.benjamini_hochberg(array) == pytest.approx(expected)
    order = np.argsort(array, kind="stable")
    holm = [
        min(1.0, max(array[order[j]] * (len(p) - j) for j in range(place + 1)))
        for place in range(len(p))
    ]
    assert statistics.holm(array)[order] == pytest.approx(holm)


@pytest.mark.parametrize(("size", "rows"), [(12, 12), (300, 40)])
def test_rotations_are_orthonormal_and_uniform(size: int, rows: int) -> None:
    """Frames have orthonormal rows, and entries distributed like those of a uniform direction."""
    rng = np.random.default_rng(5)
    entries = []
    for _ in range(300 if size == 12 else 30):
        normal = torch.from_numpy(rng.standard_normal((size, rows), dtype=np.float32))
        frame = directions.haar_frame(normal)
        assert torch.allclose(frame.T @ frame, torch.eye(rows), atol=2e-5)
        entries.append(frame[0, 0].item())
    # The square of an entry of a uniform unit vector is Beta(1/2, (n - 1) / 2).
    squares = np.square(entries)
    assert stats.kstest(squares, stats.beta(0.5, (size - 1) / 2).cdf).pvalue > 0.01
    assert stats.binomtest(int((np.array(entries) > 0).sum()), len(entries)).pvalue > 0.01


def test_independent_components_are_found() -> None:
    """FastICA unmixes heavy-tailed sources, up to order and size."""
    rng = np.random.default_rng(6)
    sources = rng.laplace(size=(4000, 5)) ** 3
    mixed = sources @ rng.standard_normal((5, 5))
    mixed /= mixed.std(0)
    found = directions.basis(v1.UNIT_BASIS_ICA, torch.tensor(mixed).float(), 0, 0)
    assert found is not None
    answers = mixed @ found.numpy().T
    likeness = np.abs(np.corrcoef(answers.T, sources.T)[:5, 5:])
    assert (likeness.max(0) > 0.97).all()


def test_connectivity_has_its_closed_forms() -> None:
    """Even rows, single weights and Gaussian rows have known Gini, Hoyer and fan-in."""
    even, single = connectivity.measures(np.stack([np.ones(50), np.eye(50)[3] * 7]))
    assert even == pytest.approx([0, 0, 1, 0], abs=1e-9)
    assert single == pytest.approx([0.98, 1, 1 / 50, 0.98])
    gaussian = connectivity.measures(np.random.default_rng(7).standard_normal((400, 2000))).mean(0)
    # Of half-normal weights: Gini sqrt(2) - 1; participation E[w^2]^2 / E[w^4] = 1/3.
    assert gaussian[0] == pytest.approx(np.sqrt(2) - 1, abs=2e-3)
    assert gaussian[2] == pytest.approx(1 / 3, abs=5e-3)
    found = connectivity.connectivity(np.random.default_rng(8).standard_normal((96, 96)), "y", 0)
    assert abs(found.gini.z) < 4
    planted_rows = connectivity.connectivity(np.repeat(np.eye(48), 2, 1), "y", 0)
    assert planted_rows.gini.value > 0.95
    assert planted_rows.gini.z > 50


def test_receptive_fields_are_where_gradients_reach() -> None:
    """The box of each place of a map holds exactly the pixels that it depends on."""
    network = planted.opened(planted.deep_map())
    field = receptive.field_of(network, "map")
    assert field is not None
    x = torch.rand(1, 1, 20, 20, requires_grad=True)
    made = network.values(x, ["map"])["map"]
    height, width = made.shape[2:]
    boxes = field.boxes(np.arange(height * width), (height, width), (20, 20))
    for place in range(height * width):
        grads = torch.autograd.grad(made.flatten(2)[0, :, place].sum(), x, retain_graph=True)
        reached = np.argwhere(grads[0][0, 0].numpy() != 0)
        top, left = reached.min(0)
        bottom, right = reached.max(0) + 1
        assert list(boxes[place]) == [top, left, bottom, right]


def test_boxes_stand_around_what_a_place_sees() -> None:
    """A frame leaves what is inside as it was, is never too small to see, and stays on the tile."""
    grey = np.full((3, sprites.TILE, sprites.TILE, 3), 128, dtype=np.uint8)
    boxes = np.array([[4, 8, 12, 14], [10, 10, 11, 11], [0, 0, 20, 20]])
    drawn = sprites.boxed(grey, boxes, (20, 20))
    for picture, (top, left, bottom, right) in zip(drawn, boxes * 2, strict=True):
        rows, columns = np.nonzero((picture != 128).any(2))
        sides = (rows.min(), columns.min(), rows.max(), columns.max())
        assert min(sides[2] - sides[0], sides[3] - sides[1]) >= 8
        inside = picture[max(top, 1) : min(bottom, 39), max(left, 1) : min(right, 39)]
        assert (inside == 128).all()
        assert sides[0] <= top <= bottom <= sides[2] + 1
        assert sides[1] <= left <= right <= sides[3] + 1


def test_near_duplicates_are_thinned() -> None:
    """Copies and almost copies are found, others are not; the first of each stays."""
    rng = np.random.default_rng(9)
    base = rng.random((50, 8, 8)).astype(np.float32)
    close = base[:5] + 1e-4 * rng.standard_normal((5, 8, 8)).astype(np.float32)
    probes = np.concatenate([base, base[:3], close])
    found = thinning.near_duplicates(lambda rows: probes[rows], np.arange(len(probes)), 0)
    assert list(np.flatnonzero(found)) == list(range(50, 58))


def test_divisors_know_chance_from_scale() -> None:
    """Gaussian units of one scale are divided alike, units of any scale by their deviations."""
    rng = np.random.default_rng(10)
    components = rng.standard_normal((1500, 60)) * np.geomspace(1, 0.03, 60)
    units = components @ rng.standard_normal((60, 120))
    scale = 10 ** rng.uniform(-3, 3, 120)
    for values, alike in ((units, True), (units * scale, False)):
        mean, std = values.mean(0), values.std(0)
        divisor = calibration.tempered(torch.tensor(values).float()[:, None], mean, std)
        assert np.log(std).std() > 0.1
        if alike:
            assert np.log(divisor).std() < 0.3 * np.log(std).std()
        else:
            assert np.log(divisor / std).std() < 0.01


def test_a_verdict_needs_both_size_and_certainty() -> None:
    """More, less, no distinction, and undecided with the probes that would decide."""
    more, _ = statistics.verdict(0.7, 1e-4, 0.01, 0.02, 1000)
    less, _ = statistics.verdict(0.3, 1e-4, 0.01, 0.02, 1000)
    none, _ = statistics.verdict(0.5, 0.5, 0.01, 0.02, 1000)
    assert (more, less) == (v1.UNIT_VERDICT_MORE, v1.UNIT_VERDICT_LESS)
    assert none == v1.UNIT_VERDICT_NO_DISTINCTION
    small, _ = statistics.verdict(0.55, 1e-9, 0.001, 0.001, 1000)
    assert small == v1.UNIT_VERDICT_NO_DISTINCTION
    open_, needed = statistics.verdict(0.5, 0.5, 0.08, 0.02, 1000)
    assert open_ == v1.UNIT_VERDICT_UNDECIDED
    # With so many probes it is decided, with a tenth fewer it is not.
    for count, said in ((needed, none), (int(0.9 * needed), open_)):
        error = 0.08 * np.sqrt(1000 / count)
        assert statistics.verdict(0.5, 0.5, error, 0.02, count)[0] == said
