"""Transfer between models of which it is known how it has to come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from safetensors.numpy import load_file
from tests.auditors.transfer.planted import (
    CLASSES,
    HIDDEN,
    MEAN,
    SHAPE,
    STD,
    Audit,
    Form,
    answers,
    images,
    network,
    run,
    weights,
)

from onnx_audit import v1
from onnx_auditors.errors import AuditError, InvalidConfig, ProbesDoNotFit

COUNT, WRONG = 40, 4
MINIMAL, MOMENTUM = v1.TRANSFER_ATTACK_MINIMAL, v1.TRANSFER_ATTACK_MOMENTUM
ORDER = np.array([2, 0, 3, 1])
"""Of the classes of one twin: class c is number ORDER[c] there, the others' order reversed."""
PLAIN = v1.InputSpec(mean=[0.0], std=[1.0])
OWN = v1.InputSpec(mean=[MEAN], std=[STD])


def twins() -> tuple[list[onnx.ModelProto], v1.TransferConfig, list[str]]:
    """Returns the same function in other forms, with what makes each comparable."""
    numbers = weights()
    units = np.random.default_rng(5).permutation(HIDDEN)
    permuted = {**numbers, "w": numbers["w"][:, units], "b": numbers["b"][units],
                "v": numbers["v"][units]}  # fmt: skip
    # tanh is odd: hidden units may change their sign.
    negated = {**numbers, "w": -numbers["w"], "b": -numbers["b"], "v": -numbers["v"]}
    back = np.argsort(ORDER)
    classes = {**numbers, "v": numbers["v"][:, back], "c": numbers["c"][back]}
    one = np.float32(1)
    folded = Form(
        before=[
            helper.make_node("Sub", ["x", "mean"], ["s"]),
            helper.make_node("Mul", ["s", "scale"], ["t"]),
        ],
        start="t",
        constants={"mean": np.array(MEAN, np.float32), "scale": np.array(one / np.float32(STD))},
    )
    last = Form(
        before=[helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])],
        start="t",
        shape=(6, 6, 3),
    )
    single = Form(
        after=[
            helper.make_node("Softmax", ["z"], ["p"], axis=1),
            helper.make_node("Reshape", ["p", "shape"], ["y"]),
        ],
        end="y",
        batch=1,
        constants={"shape": np.array([1, CLASSES, 1, 1])},
    )
    forms = [
        ("copy", network(numbers), v1.PeerModel()),
        ("permuted units", network(permuted), v1.PeerModel()),
        ("negated units", network(negated), v1.PeerModel()),
        ("classes", network(classes), v1.PeerModel(label_map=ORDER.tolist())),
        ("normalisation folded in", network(numbers, folded), v1.PeerModel(input_spec=PLAIN)),
        ("channels last", network(numbers, last), v1.PeerModel(
            input_spec=v1.InputSpec(mean=[MEAN], std=[STD], model_layout=v1.LAYOUT_HWC)
        )),
        ("probabilities, one at a time", network(numbers, single), v1.PeerModel()),
        ("five at a time", network(numbers, Form(batch=5)), v1.PeerModel(input_spec=OWN)),
    ]  # fmt: skip
    config = v1.TransferConfig(
        budget=60, peers=[peer for *_, peer in forms], attacks=[MINIMAL, MOMENTUM]
    )
    return [network(numbers), *(model for _, model, _ in forms)], config, [n for n, *_ in forms]


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit of nine forms of one function; 4 of 40 labels are wrong for it."""
    models, config, _ = twins()
    inputs = images(COUNT)
    labels = answers(weights(), inputs)
    labels[:WRONG] = (labels[:WRONG] + 1) % CLASSES
    return run(tmp_path_factory.mktemp("same"), models, config, inputs, labels)


def test_forms_of_one_function_fool_each_other_always(same: Audit) -> None:
    """Every smallest change for one form fools all others, noise of its size hardly ever does."""
    count = len(same.section.models)
    assert count == 9
    for source in range(count):
        for target in range(count):
            cell = same.cell(source, target)
            assert (cell.error_rate.value, cell.error_rate.count) == (1, COUNT - WRONG)
            assert cell.noise_error_rate.value < 0.5
            assert cell.HasField("p_value") == (source != target)
    for detail in same.section.details:
        assert detail.clean_accuracy.value == (COUNT - WRONG) / COUNT
        assert detail.parity_difference <= detail.parity_tolerance


def test_forms_of_one_function_answer_noise_alike(same: Audit) -> None:
    """All columns of a row are equal: clean, nulls and curves, for both attacks."""
    for attack in (MINIMAL, MOMENTUM):
        for source in range(9):
            row = [same.cell(source, target, attack) for target in range(9)]
            for cell in row:
                for name in ("error_rate", "noise_error_rate", "shuffled_error_rate", "excess"):
                    assert getattr(cell, name).value == pytest.approx(
                        getattr(row[0], name).value, abs=1.01 / (COUNT - WRONG)
                    )
                assert [p.mean_rms for p in cell.curve] == [p.mean_rms for p in row[0].curve]


def test_examples_are_confirmed_by_an_independent_session(same: Audit) -> None:
    """What the exported examples do on each file, in another ONNX Runtime, gives the counts."""
    for attack in (MINIMAL, MOMENTUM):
        table = same.examples(attack)
        labels = same.labels
        assert labels is not None
        np.testing.assert_array_equal(labels[table["probe"]], table["label"])
        maps = [np.array(peer.label_map or range(CLASSES)) for peer in same.section.config.peers]
        maps.insert(0, np.arange(CLASSES))
        for target, path in enumerate(same.models):
            session = onnxruntime.InferenceSession(path)
            spec = same.section.details[target].input_spec

            def ask(
                x: np.ndarray,
                session: onnxruntime.InferenceSession = session,
                spec: v1.InputSpec = spec,
            ) -> np.ndarray:
                fed = (x - np.float32(spec.mean[0])) / np.float32(spec.std[0])
                if session.get_inputs()[0].shape[-1] == 3:
                    fed = fed.transpose(0, 2, 3, 1)
                size = session.get_inputs()[0].shape[0]
                size = size if isinstance(size, int) else 1
                pad = np.concatenate([fed, fed[: -len(fed) % size]])
                outputs = [
                    session.run(None, {"x": np.ascontiguousarray(pad[i : i + size])})[0]
                    for i in range(0, len(pad), size)
                ]
                scores = np.concatenate(outputs).reshape(len(pad), -1)[: len(x)]
                picked: np.ndarray = scores.argmax(1)
                return picked

            right = ask(same.inputs) == maps[target][labels]
            found = ask(table["example"])
            np.testing.assert_array_equal(found, table["answers"][:, target])
            fooled = (found != maps[target][table["label"]]) & right[table["probe"]]
            np.testing.assert_array_equal(fooled, table["fooled"][:, target])
            for source in range(len(same.models)):
                mine = table["source"] == source
                cell = same.cell(source, target, attack)
                assert cell.error_rate.count == right[table["probe"]][mine].sum()
                assert cell.error_rate.value == fooled[mine].sum() / cell.error_rate.count
    assert table["example"].min() >= 0
    assert table["example"].max() <= 1


def test_similarity_and_fooling_set_of_one_function(same: Audit) -> None:
    """All models are at distance 0, one example is enough, and it fools all."""
    section = same.section
    assert sorted(section.order) == list(range(9))
    assert section.grouped_by == MINIMAL
    assert all(merge.distance == pytest.approx(0, abs=1e-12) for merge in section.merges)
    assert section.fooling.proved
    assert [list(example.fooled) for example in section.fooling.smallest] == [list(range(9))]
    assert sum(section.fooling.by_models_fooled) == section.fooling.examples


def test_sizes_and_training_set(same: Audit) -> None:
    """Exported sizes are those of the changes; training sets are what fools another model."""
    size = np.prod(SHAPE)
    for attack in (MINIMAL, MOMENTUM):
        table = same.examples(attack)
        change = table["example"].astype(np.float64) - same.inputs[table["probe"]]
        l2 = np.sqrt((change.reshape(len(change), -1) ** 2).sum(1))
        np.testing.assert_allclose(table["l2"], l2, rtol=1e-12)
        np.testing.assert_allclose(table["rms"], l2 / np.sqrt(size), rtol=1e-12)
        rows = [row for row in same.section.rows if row.attack == attack]
        for row in rows:
            assert row.mean_rms.value == pytest.approx(
                table["rms"][table["source"] == row.source].mean()
            )
        (files,) = (f for f in same.section.artefacts if f.attack == attack)
        training = load_file(same.folder / files.training_set.sha256)
        others = table["fooled"].copy()
        others[np.arange(len(others)), table["source"]] = 0
        chosen = others.any(1)
        np.testing.assert_array_equal(training["inputs"], table["example"][chosen])
        np.testing.assert_array_equal(training["labels"], table["label"][chosen])
    np.testing.assert_allclose(table["rms"], same.section.config.attack_rms, rtol=1e-5)


def test_a_random_classifier_is_at_chance(tmp_path: Path) -> None:
    """A peer whose answers to any two points are unrelated errs alike on examples and noise."""
    wild = network({**weights(7), "w": 60 * weights(7)["w"]}, hidden="Sin")
    inputs = images(250)
    audit = run(
        tmp_path,
        [network(weights()), wild],
        v1.TransferConfig(peers=[v1.PeerModel()], attacks=[MOMENTUM], attack_rms=0.2),
        inputs,
        answers(weights(), inputs),
    )
    accuracy = audit.section.details[1].clean_accuracy
    assert accuracy.interval.lower < 1 / CLASSES < accuracy.interval.upper
    cell = audit.cell(0, 1, MOMENTUM)
    chance = 1 - 1 / CLASSES
    for estimate in (cell.error_rate, cell.noise_error_rate, cell.shuffled_error_rate):
        assert estimate.interval.lower < chance < estimate.interval.upper
    assert cell.excess.interval.lower < 0 < cell.excess.interval.upper
    assert cell.corrected_p_value > 0.05
    assert [warning.code for warning in audit.warnings] == ["MODEL_AT_CHANCE"]


def test_same_seed_same_section(tmp_path: Path) -> None:
    """Run twice, all attacks give the same bytes; another seed other noise."""
    sections = []
    for i, seed in enumerate((3, 3, 4)):
        (tmp_path / f"run{i}").mkdir()
        audit = run(
            tmp_path / f"run{i}",
            [network(weights(n)) for n in range(3)],
            v1.TransferConfig(
                budget=10,
                attack_steps=2,
                noise_draws=1,
                rms_levels=[0.1],
                peers=[v1.PeerModel(), v1.PeerModel()],
                attacks=[attack for attack in v1.TransferAttack.values() if attack],
            ),
            images(8),
            answers(weights(), images(8)),
            seed=seed,
        )
        sections.append(audit.section.SerializeToString(deterministic=True))
    assert sections[0] == sections[1] != sections[2]


def test_targeted_examples_reach_their_class(tmp_path: Path) -> None:
    """Every smallest change towards a class gives that class on the source, and on its copy."""
    attack = v1.TRANSFER_ATTACK_MINIMAL_TARGETED
    inputs = images(20)
    audit = run(
        tmp_path,
        [network(weights()), network(weights())],
        v1.TransferConfig(budget=60, peers=[v1.PeerModel(label_map=range(4))], attacks=[attack]),
        inputs,
        answers(weights(), inputs),
    )
    table = audit.examples(attack)
    assert len(table["aimed"]) > 20
    assert (table["aimed"] != table["label"]).all()
    np.testing.assert_array_equal(table["answers"][:, 0], table["aimed"])
    for target in range(2):
        cell = audit.cell(0, target, attack)
        assert cell.match_rate.value == 1
        assert cell.noise_match_rate.value < 0.5


def test_labels_that_a_peer_lacks_are_left_out(tmp_path: Path) -> None:
    """Probes of a class that the peer does not have are in no cell of its column or row."""
    numbers = weights()
    inputs = images(40)
    labels = answers(numbers, inputs)
    fewer = {**numbers, "v": numbers["v"][:, :3], "c": numbers["c"][:3]}
    audit = run(
        tmp_path,
        [network(numbers), network(fewer)],
        v1.TransferConfig(
            budget=30, peers=[v1.PeerModel(label_map=[0, 1, 2, -1])], attacks=[MINIMAL]
        ),
        inputs,
        labels,
    )
    known = int((labels < 3).sum())
    assert 0 < known < 40
    assert audit.cell(0, 0).error_rate.count == 40
    assert audit.cell(0, 1).error_rate.count == known
    assert audit.cell(1, 0).error_rate.count == known
    assert audit.section.details[1].clean_accuracy.count == known


@pytest.mark.parametrize(
    ("peer", "classes", "error", "field"),
    [
        (v1.PeerModel(), 3, InvalidConfig, "label_map"),
        (v1.PeerModel(label_map=[0, 1, 2]), 4, InvalidConfig, "label_map"),
        (v1.PeerModel(label_map=[0, 1, 2, 4]), 4, InvalidConfig, "label_map"),
        (v1.PeerModel(label_map=[1, -1, 1, 1]), 4, InvalidConfig, "label_map"),
        (
            v1.PeerModel(input_spec=v1.InputSpec(upper=[2.0])),
            4,
            InvalidConfig,
            "input_spec.upper",
        ),
        (
            v1.PeerModel(input_spec=v1.InputSpec(mean=[0.1, 0.2])),
            4,
            ProbesDoNotFit,
            "input_spec",
        ),
    ],
)
def test_models_that_cannot_be_compared(
    tmp_path: Path, peer: v1.PeerModel, classes: int, error: type[AuditError], field: str
) -> None:
    """The field at fault is named."""
    numbers = weights()
    other = {**numbers, "v": numbers["v"][:, :classes], "c": numbers["c"][:classes]}
    models = [network(numbers), network(other)]
    with pytest.raises(error) as caught:
        run(tmp_path, models, v1.TransferConfig(peers=[peer]), images(4), None)
    assert caught.value.metadata["field"] == f"peers[0].{field}"


def test_without_labels_the_audited_model_is_right(tmp_path: Path) -> None:
    """Its answers count as right; the other's accuracy is how often they agree."""
    inputs = images(30)
    audit = run(
        tmp_path,
        [network(weights()), network(weights(1))],
        v1.TransferConfig(budget=20, peers=[v1.PeerModel()], attacks=[MINIMAL]),
        inputs,
        None,
    )
    agree = (answers(weights(), inputs) == answers(weights(1), inputs)).mean()
    assert audit.section.details[0].clean_accuracy.value == 1
    assert audit.section.details[1].clean_accuracy.value == pytest.approx(agree)
    assert "TRANSFER_WITHOUT_LABELS" in {warning.code for warning in audit.warnings}
