"""Probe files of every form, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from onnx_audit import ProbeError, load_probes, v1
from onnx_audit.probes import save_probes

INPUTS = np.arange(24, dtype=np.float32).reshape(4, 3, 2) / 24
LABELS = np.array([0, 2, 1, 1], dtype=np.int32)


def digest(source: Any, folder: Path, **options: Any) -> str:
    """SHA-256 of the canonical form."""
    path = folder / "canonical.safetensors"
    save_probes(load_probes(source, **options), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_form_gives_the_same_bytes(tmp_path: Path) -> None:
    """Arrays, .npz and .safetensors with the same content have one digest, however stored."""
    np.savez(tmp_path / "a.npz", inputs=INPUTS, labels=LABELS)
    np.savez_compressed(
        tmp_path / "b.npz", labels=LABELS.astype(np.uint8), images=np.asfortranarray(INPUTS)
    )
    np.savez(tmp_path / "c.npz", inputs=INPUTS.astype(">f4"), labels=LABELS.astype(">i8"))
    safetensors.numpy.save_file(
        {"labels": LABELS, "inputs": INPUTS}, tmp_path / "d.safetensors", {"made": "here"}
    )
    sources = [{"inputs": INPUTS, "labels": LABELS}, *sorted(tmp_path.iterdir())]
    assert len({digest(source, tmp_path) for source in sources}) == 1
    assert digest(INPUTS, tmp_path, labels=list(LABELS)) == digest(sources[0], tmp_path)
    assert digest(INPUTS, tmp_path) != digest(sources[0], tmp_path)


@given(
    inputs=npst.arrays(
        st.sampled_from(["uint8", "<f2", ">f4", "<f8"]),
        npst.array_shapes(min_dims=2, max_dims=4, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_canonical_form_round_trips(
    inputs: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is written is what was given, dtype and values unchanged."""
    path = tmp_path_factory.mktemp("round") / "p.safetensors"
    save_probes(load_probes(inputs), path)
    back = load_probes(path)
    assert back.inputs.dtype.name == inputs.dtype.name
    np.testing.assert_array_equal(back.inputs, inputs)
    assert back.labels is None


def test_images_array_is_taken_with_a_note(tmp_path: Path) -> None:
    """A file with `images` instead of `inputs` is accepted, and that is said."""
    np.savez(tmp_path / "p.npz", images=INPUTS, other=np.zeros(3))
    probes = load_probes(tmp_path / "p.npz")
    assert probes.display_name == "p"
    assert probes.notes == ("took the array 'images' as the inputs",)


def test_pickled_npz_is_refused_unread(tmp_path: Path) -> None:
    """A .npz with Python objects is refused with advice, and nothing in it is run."""

    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "p.npz", inputs=np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ProbeError, match=r"pickled objects.*savez"):
        load_probes(tmp_path / "p.npz")
    assert not (tmp_path / "ran").exists()


def test_bare_pickle_is_refused(tmp_path: Path) -> None:
    """A pickle that calls itself .npz is refused too."""
    (tmp_path / "p.npz").write_bytes(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01.")
    with pytest.raises(ProbeError, match="pickled"):
        load_probes(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (INPUTS.astype(np.int64), None, "inputs are int64; expected uint8, float16"),
        (INPUTS.ravel(), None, r"shape \(24,\); expected \[N, ...\]"),
        (INPUTS[:0], None, "no probes"),
        (np.where(np.arange(24).reshape(4, 6) == 13, np.nan, 0.0), None, "probe 2 has NaN"),
        (np.where(np.arange(24).reshape(4, 6) == 6, np.inf, 0.0), None, "probe 1 has infinite"),
        (INPUTS, LABELS[:3], r"labels have shape \[3\]; expected \[4\]"),
        (INPUTS, LABELS.astype(float), "labels are float64; expected integers"),
        (INPUTS, LABELS - 1, "labels run from -1 to 1"),
    ],
)
def test_unusable_probes_are_refused(inputs: Any, labels: Any, message: str) -> None:
    """Each kind of unusable input or label has its own explanation."""
    with pytest.raises(ProbeError, match=message):
        load_probes(inputs, labels=labels)


def test_missing_inputs_lists_what_was_found(tmp_path: Path) -> None:
    """A file without inputs is refused with the names of its arrays."""
    np.savez(tmp_path / "p.npz", x=INPUTS, y=LABELS)
    with pytest.raises(ProbeError, match=r"found the arrays x, y; expected inputs"):
        load_probes(tmp_path / "p.npz")


@pytest.mark.parametrize("name", ["p.npz", "p.safetensors", "p.csv", "absent.npz"])
def test_unreadable_files_are_probe_errors(tmp_path: Path, name: str) -> None:
    """Damaged, unknown and missing files are ProbeErrors that name the file."""
    if not name.startswith("absent"):
        (tmp_path / name).write_bytes(b"\x00\x01 not a probe file")
    with pytest.raises(ProbeError, match=name):
        load_probes(tmp_path / name)


def test_class_names_must_cover_the_labels() -> None:
    """A label without a name is an error when names are given."""
    with pytest.raises(ProbeError, match="label 2 has no class name"):
        load_probes(INPUTS, labels=LABELS, class_names=["a", "b"])


def save_image(path: Path, colour: Any, mode: str = "RGB", size: tuple[int, int] = (5, 3)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_image_folder_gives_labels_in_sorted_order(tmp_path: Path) -> None:
    """Subfolders are the classes, sorted; pixels come as height, width, channels."""
    save_image(tmp_path / "dog" / "1.png", (10, 20, 30))
    save_image(tmp_path / "cat" / "b.bmp", (1, 2, 3))
    save_image(tmp_path / "cat" / "a.webp", (0, 0, 0))
    save_image(tmp_path / "cat" / "c.jpg", (0, 0, 0))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    probes = load_probes(tmp_path)
    assert probes.class_names == ("cat", "dog")
    assert probes.labels is not None
    assert probes.labels.tolist() == [0, 0, 0, 1]
    assert probes.inputs.shape == (4, 3, 5, 3)
    assert probes.inputs[1, 0, 0].tolist() == [1, 2, 3]
    assert probes.inputs[3, 2, 4].tolist() == [10, 20, 30]
    assert probes.input_spec == v1.InputSpec(probe_layout=v1.LAYOUT_HWC)


def test_grey_images_have_no_channel_axis_unless_mixed(tmp_path: Path) -> None:
    """Grey folders give [N, H, W]; one colour image makes all RGB, with a note."""
    save_image(tmp_path / "1.png", 7, "L")
    grey = load_probes(tmp_path)
    assert grey.inputs.shape == (1, 3, 5)
    assert grey.input_spec == v1.InputSpec()
    save_image(tmp_path / "2.png", (1, 2, 3, 4), "RGBA")
    mixed = load_probes(tmp_path)
    assert mixed.inputs[:, 0, 0].tolist() == [[7, 7, 7], [1, 2, 3]]
    assert mixed.labels is None
    assert len(mixed.notes) == 2


def test_images_of_two_sizes_are_named(tmp_path: Path) -> None:
    """The error names both files and both sizes."""
    save_image(tmp_path / "a" / "1.png", 0, "L")
    save_image(tmp_path / "b" / "2.png", 0, "L", (4, 4))
    with pytest.raises(ProbeError, match=r"a/1\.png is 5x3, .*b/2\.png is 4x4"):
        load_probes(tmp_path)


def test_bad_image_folders_are_explained(tmp_path: Path) -> None:
    """Empty folders, empty labels, damaged and deep images each have their explanation."""
    with pytest.raises(ProbeError, match="no images"):
        load_probes(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ProbeError, match="no images in this label's folder"):
        load_probes(tmp_path)
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    with pytest.raises(ProbeError, match=r"x\.png: not a readable image"):
        load_probes(tmp_path)
    save_image(tmp_path / "a" / "x.png", 1000, "I;16")
    with pytest.raises(ProbeError, match=r"I;16; expected 8 bits"):
        load_probes(tmp_path)
    save_image(tmp_path / "loose.png", 1, "L")
    with pytest.raises(ProbeError, match=r"both subfolders and images such as loose\.png"):
        load_probes(tmp_path)
