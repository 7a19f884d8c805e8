"""Controls with known answers: planted features, twins of the same function, nulls."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.auditors.units import planted
from tests.auditors.units.planted import CONCEPTS, World, score

from onnx_audit import v1
from onnx_auditors import units
from onnx_auditors.units import passes, section
from onnx_auditors.units.setup import Setup, set_up

LABEL, CONCEPT, COHERENCE = (
    v1.UNIT_SCORE_KIND_LABEL,
    v1.UNIT_SCORE_KIND_CONCEPT,
    v1.UNIT_SCORE_KIND_COHERENCE,
)
PCA = v1.UNIT_BASIS_PCA
UNITS = 2 * CONCEPTS
Floats = npt.NDArray[np.float64]


def measured(world: World, mix: Floats | None = None, **options: Any) -> v1.UnitsSection:
    """The section of the planted network, with fewer directions than by default."""
    network = planted.opened(planted.network(world, mix, options.pop("shift", 30.0)))
    quick = {"directions": 384, "rotations": 29, "bases": [PCA]}
    settings: dict[str, Any] = {"labels": world.labels, "values": ["fc1_relu"], **quick}
    return units.measure(network, world.images, **(settings | options))


@pytest.fixture(scope="module")
def straight(world: World) -> v1.UnitsSection:
    """The planted network, in full."""
    return measured(world, directions=1024, rotations=99, bases=[])


def test_planted_features_are_found(straight: v1.UnitsSection) -> None:
    """Units that see one concept each are told from random directions by every score."""
    for kind, least in ((LABEL, 0.97), (CONCEPT, 0.98), (COHERENCE, 0.85)):
        found = score(straight, kind)
        assert found.index_auc.value >= least
        assert found.index_auc.interval.lower <= found.index_auc.value
        assert found.p_rotation == 1 / 100
        assert found.p_holm < 1e-6
        assert found.verdict == v1.UNIT_VERDICT_MORE
        assert found.natural_mean.value > found.random_mean.value
    assert score(straight, LABEL).natural_mean.value > 0.95
    selectivity, two_afc = straight.layers[0].secondary
    assert (selectivity.kind, two_afc.kind) == (
        v1.UNIT_SCORE_KIND_SELECTIVITY,
        v1.UNIT_SCORE_KIND_TWO_AFC,
    )
    assert selectivity.index_auc.value > 0.95
    assert selectivity.p_rotation == 1 / 100
    # Whatever a direction is, likeness tells its top inputs from its bottom ones.
    assert min(two_afc.natural_mean.value, two_afc.random_mean.value) > 0.95
    assert not any(other.verdict or other.p_holm for other in (selectivity, two_afc))
    assert score(straight, LABEL).units_above_random == UNITS
    assert score(straight, CONCEPT).distinct_concepts == CONCEPTS
    # Permuted labels are at the null with the same lists.
    permuted = score(straight, LABEL).permuted_labels
    assert 0.4 < permuted.value < 0.6
    assert abs(score(straight, LABEL).permuted_mean.value) < 0.01


def test_each_unit_names_its_concept(straight: v1.UnitsSection) -> None:
    """Unit i sees concept i // 2, and its top probes show it."""
    (layer,) = straight.layers
    assert len(layer.units) == UNITS
    assert [row.concept for row in layer.units] == [row.unit // 2 for row in layer.units]
    assert all(len(set(row.top_probes)) == 9 for row in layer.units)


def test_top_probes_are_those_of_an_argsort(world: World, straight: v1.UnitsSection) -> None:
    """The streamed lists are those of sorting all activations."""
    network = planted.opened(planted.network(world))
    with torch.no_grad():
        values = network.values(torch.from_numpy(world.images), ["fc1"])["fc1"].numpy()
    for row in straight.layers[0].units[:20]:
        assert list(row.top_probes) == list(np.argsort(-values[:, row.unit], kind="stable")[:9])


def test_a_rotated_twin_is_no_better_than_random(world: World) -> None:
    """The same function in a rotated basis has no distinguished units."""
    mix = planted.rotation(UNITS, 3)
    x = torch.from_numpy(world.images[:200])
    with torch.no_grad():
        logits = [planted.opened(planted.network(world, m))(x) for m in (None, mix)]
    assert float((logits[0] - logits[1]).abs().max()) < 1e-2
    section = measured(world, mix)
    for kind in (LABEL, CONCEPT, COHERENCE):
        found = score(section, kind)
        assert 0.35 < found.index_auc.value < 0.65
        assert found.p_rotation > 0.02
        assert found.p_rotation_low > 0.02
        assert found.verdict not in {v1.UNIT_VERDICT_MORE, v1.UNIT_VERDICT_LESS}
    for other in section.layers[0].secondary:
        assert 0.35 < other.index_auc.value < 0.65


def test_partial_rotations_lie_in_between(world: World) -> None:
    """The further the basis is turned, the lower index and mean score."""
    sections = [
        measured(world, planted.rotation(UNITS, 3, power)) for power in (0.25, 0.5, 0.75, 1)
    ]
    for kind in (LABEL, CONCEPT, COHERENCE):
        found = [score(section, kind) for section in sections]
        indices = [each.index_auc.value for each in found]
        assert indices == sorted(indices, reverse=True)
        means = [each.natural_mean.value for each in found]
        assert means == sorted(means, reverse=True)
        assert indices[0] > 0.95
        assert indices[-1] < 0.65


def _scales() -> Floats:
    return np.asarray(10 ** np.random.default_rng(5).uniform(-3, 3, UNITS))


@pytest.mark.parametrize(
    ("mix", "shift"),
    [
        pytest.param(np.diag(_scales()), 30 * _scales(), id="rescaled"),
        pytest.param(np.eye(UNITS)[np.random.default_rng(6).permutation(UNITS)], 30, id="permuted"),
        pytest.param(-np.eye(UNITS), 30, id="sign-flipped"),
        pytest.param(np.eye(UNITS), 80, id="shifted"),
    ],
)
def test_trivial_twins_give_the_index_back(
    world: World, straight: v1.UnitsSection, mix: Floats, shift: Floats | float
) -> None:
    """What changes neither function nor meaning of units changes no index."""
    twin = measured(world, mix, shift=shift)
    for kind in (LABEL, CONCEPT, COHERENCE):
        given, back = (score(section, kind).index_auc.value for section in (straight, twin))
        assert abs(given - back) <= 0.02
    flipped = mix[0, 0] < 0
    assert twin.layers[0].plateau == (UNITS if flipped else 0)
    assert all(row.flipped == flipped for row in twin.layers[0].units)


def test_dead_and_near_dead_units_are_counted(world: World) -> None:
    """Units behind a rectifier that never, or hardly ever, opens are left out."""
    network = planted.opened(planted.network(world))
    with torch.no_grad():
        values = network.values(torch.from_numpy(world.images), ["fc1"])["fc1"].numpy() - 30
    shift = np.full(UNITS, 30.0)
    shift[:7] = -1000
    # Open on 3 of 1,600 probes: fewer than a top input needs.
    shift[7:12] = -np.sort(values[:, 7:12], 0)[-4]
    (layer,) = measured(world, shift=shift).layers
    assert (layer.dead, layer.near_dead, layer.live) == (7, 5, UNITS - 12)
    assert min(row.unit for row in layer.units) == 12


def test_polysemantic_units_are_told_from_the_others(world: World) -> None:
    """Units that answer to eight concepts each do not pass for meaningful."""
    mix = np.eye(UNITS)
    rng = np.random.default_rng(8)
    for unit in range(24):
        mix[unit, rng.choice(np.arange(24, UNITS), 7, replace=False)] = 1
    section = measured(world, mix)
    (layer,) = section.layers
    rows = {row.unit: row for row in layer.units}
    above = {unit for unit, row in rows.items() if row.q[0] < 0.05}
    assert above >= set(range(24, UNITS))
    assert score(section, LABEL).units_above_random == len(above)
    assert max(rows[unit].score[0] for unit in range(24)) < min(
        rows[unit].score[0] for unit in range(24, UNITS)
    )


def test_random_weights_are_at_the_null(world: World) -> None:
    """Before its nonlinearity a network with Gaussian weights is like its rotations."""
    network = planted.opened(planted.gaussian(4))
    section = units.measure(
        network, world.images, labels=world.labels, directions=384, rotations=29, bases=[PCA]
    )
    assert [layer.value for layer in section.layers] == ["fc0_relu", "fc1_relu"]
    for layer in section.layers:
        for found in layer.scores:
            assert 0.38 < found.index_auc.value < 0.62
            assert found.verdict not in {v1.UNIT_VERDICT_MORE, v1.UNIT_VERDICT_LESS}


def test_shuffled_labels_are_at_the_null(world: World) -> None:
    """Labels that say nothing of the images leave the units without a distinction."""
    labels = np.random.default_rng(2).permutation(world.labels)
    section = measured(world, labels=labels)
    for kind in (LABEL, CONCEPT):
        found = score(section, kind)
        assert 0.35 < found.index_auc.value < 0.65
        assert found.verdict not in {v1.UNIT_VERDICT_MORE, v1.UNIT_VERDICT_LESS}
    assert abs(score(section, LABEL).natural_mean.value) < 0.02
    assert not section.embedding.sees_labels
    assert score(section, COHERENCE).verdict == v1.UNIT_VERDICT_MORE


def test_given_concepts_embeddings_and_directions(world: World) -> None:
    """Concepts, a reference embedding and a dictionary stand in for what is built in."""
    mix = planted.rotation(UNITS, 3)
    section = measured(
        world,
        mix,
        concepts=world.concepts,
        embedding=world.concepts.astype(float),
        given={"fc1_relu": mix.T[::2]},
        bases=[v1.UNIT_BASIS_PCA, v1.UNIT_BASIS_ICA],
    )
    assert section.embedding.source == "given"
    (layer,) = section.layers
    kinds = [found.kind for found in layer.scores]
    bases = {basis.basis: basis for basis in layer.bases}
    # The dictionary undoes the rotation: its directions are the planted features.
    dictionary = bases[v1.UNIT_BASIS_GIVEN]
    assert dictionary.count == CONCEPTS
    assert dictionary.index_auc[kinds.index(CONCEPT)] > 0.98
    assert dictionary.index_auc[kinds.index(LABEL)] > 0.97
    assert 0.35 < score(section, CONCEPT).index_auc.value < 0.65


def test_masks_are_judged_by_their_overlap() -> None:
    """Units of a map that see a concept where it is cover its mask better than random ones."""
    world = planted.world(600)
    masks = np.zeros((len(world.images), CONCEPTS, planted.SIDE, planted.SIDE), dtype=bool)
    where = np.abs(world.templates).reshape(CONCEPTS, 3, planted.SIDE, planted.SIDE).max(1) > 0
    masks[world.concepts] = where[np.nonzero(world.concepts)[1]]
    found, rotated = (
        score(
            units.measure(
                planted.opened(planted.convolution(world, mix)),
                world.images,
                values=["map"],
                masks=masks,
                directions=256,
                rotations=19,
                bases=[PCA],
            ),
            v1.UNIT_SCORE_KIND_IOU,
        )
        for mix in (None, planted.rotation(CONCEPTS, 7))
    )
    assert found.index_auc.value > 0.95
    assert found.verdict == v1.UNIT_VERDICT_MORE
    assert 0.3 < rotated.index_auc.value < 0.7


def _prepared(world: World) -> Setup:
    network = planted.opened(planted.network(world))
    config = v1.UnitsConfig(values=["fc0_relu", "fc1_relu"], directions=128, rotations=19)
    source = units.source_of(network, world.images, labels=world.labels, seed=0)
    return set_up(config, source)


def test_sharding_does_not_show() -> None:
    """The section is the same, byte for byte, from 1, 3 and 16 shards, in any order."""
    world, sections = planted.world(1200), []
    for shards in (1, 3, 16):
        setup = _prepared(world)
        cut = setup.cut(shards)
        assert len(cut) == shards
        partials = [passes.run(setup, *shard, lambda _: None) for shard in cut]
        merged = section.merge(setup, partials[::-1], None)
        sections.append(merged.SerializeToString(deterministic=True))
    assert sections[0] == sections[1] == sections[2]
