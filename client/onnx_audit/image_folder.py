"""Reads a folder of images, one subfolder per label, into one uint8 array."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
import numpy.typing as npt

from onnx_audit.errors import ProbeError

SUFFIXES: Final = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp"))
# Pillow's modes with one byte per channel, by what they become.
_GREY_MODES: Final = frozenset(("1", "L"))
_COLOUR_MODES: Final = frozenset(("RGB", "RGBA", "RGBX", "P", "PA", "LA", "CMYK", "YCbCr"))
_ALPHA_MODES: Final = frozenset(("RGBA", "PA", "LA"))


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """What a folder holds.

    Attributes:
        inputs: uint8, [N, height, width] if every image is grey, else [N, height, width, 3] (RGB).
        labels: [N], int64: the position of the image's subfolder among the sorted ones; None if
            the images lie in the folder itself.
        class_names: The subfolders' sorted names.
        notes: What a reader should know, a sentence each.
    """

    inputs: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def load_image_folder(folder: Path) -> ImageFolder:
    """Reads all images of a folder, in the order of their sorted paths.

    Raises:
        ProbeError: Pillow is not installed, there are no images, one cannot be read, or they are
            not all of one size.
    """
    files, labels, class_names = _list_images(folder)
    image_module = _pillow()
    modes = [_mode(image_module, file) for file in files]
    target = "L" if set(modes) <= _GREY_MODES else "RGB"
    inputs: npt.NDArray[np.uint8] | None = None
    for index, file in enumerate(files):
        pixels = _pixels(image_module, file, target)
        if inputs is None:
            inputs = np.empty((len(files), *pixels.shape), dtype=np.uint8)
        if pixels.shape != inputs.shape[1:]:
            raise ProbeError(
                f"images differ in size: {files[0]} is {inputs.shape[2]}x{inputs.shape[1]}, "
                f"{file} is {pixels.shape[1]}x{pixels.shape[0]}; resize them to one size"
            )
        inputs[index] = pixels
    if inputs is None:
        raise ProbeError(f"{folder}: no images in it; expected {', '.join(sorted(SUFFIXES))}")
    return ImageFolder(inputs, labels, class_names, _notes(modes, target))


def _list_images(
    folder: Path,
) -> tuple[list[Path], npt.NDArray[np.int64] | None, tuple[str, ...]]:
    """Image files, their labels and the names of the labels."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    classes = [path for path in entries if path.is_dir()]
    loose = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not classes:
        return loose, None, ()
    if loose:
        raise ProbeError(
            f"{folder}: has both subfolders and images such as {loose[0].name}; expected one "
            "subfolder per label, or images alone"
        )
    files: list[Path] = []
    labels: list[int] = []
    for label, subfolder in enumerate(classes):
        images = sorted(path for path in subfolder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not images:
            raise ProbeError(
                f"{subfolder}: no images in this label's folder; expected "
                f"{', '.join(sorted(SUFFIXES))}"
            )
        files += images
        labels += [label] * len(images)
    return files, np.array(labels, dtype=np.int64), tuple(path.name for path in classes)


def _pillow() -> ModuleType:
    try:
        from PIL import Image  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ProbeError("reading images needs Pillow: pip install 'onnx-audit[images]'") from error
    return Image


def _mode(image_module: ModuleType, file: Path) -> str:
    try:
        with image_module.open(file) as image:
            mode = str(image.mode)
    except (OSError, ValueError) as error:
        raise ProbeError(f"{file}: not a readable image: {error}") from error
    if mode not in _GREY_MODES | _COLOUR_MODES:
        raise ProbeError(f"{file}: has mode {mode}; expected 8 bits per channel, convert it first")
    return mode


def _pixels(image_module: ModuleType, file: Path, mode: str) -> npt.NDArray[np.uint8]:
    try:
        with image_module.open(file) as image:
            return np.asarray(image.convert(mode), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise ProbeError(f"{file}: not a readable image: {error}") from error


def _notes(modes: list[str], target: str) -> tuple[str, ...]:
    notes = []
    if alpha := sum(mode in _ALPHA_MODES for mode in modes):
        notes.append(f"dropped the transparency of {alpha} images")
    if target == "RGB" and (grey := sum(mode in _GREY_MODES for mode in modes)):
        notes.append(f"converted {grey} grey images to RGB, as the others are in colour")
    return tuple(notes)
