"""The last step of the image's build: checks the variant, compiles, takes out what runs nothing."""

from __future__ import annotations

import compileall
import py_compile
import shutil
import sys
import sysconfig
from pathlib import Path

REMOVED = ("torch/include", "torch/test", "torch/share/cmake", "*/tests", "*/test")
"""Folders of the installed packages that only builds and their own tests use."""


def check_variant(variant: str) -> None:
    """Makes sure that the index gave the torch that was asked for.

    Raises:
        SystemExit: It gave the other one.
    """
    from torch.version import cuda  # noqa: PLC0415 - slow, and only here

    found = "cuda" if cuda else "cpu"
    if variant != found:
        sys.exit(
            f"VARIANT={variant}, but pip installed torch for {found}: name an index or folder with "
            f"torch's {variant} wheels in the secret pip_conf (extra-index-url, find-links)"
        )


def main() -> None:
    """Finishes the environment that this interpreter belongs to."""
    check_variant(sys.argv[1])
    site = Path(sysconfig.get_path("purelib"))
    for pattern in REMOVED:
        for folder in site.glob(pattern):
            shutil.rmtree(folder)
    # Compiled files that hold no time are the same in every build, and a read-only root makes none.
    compiled = compileall.compile_dir(
        site,
        quiet=2,
        workers=0,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not compiled:
        print("some files of the packages do not compile")  # noqa: T201 - a build step's output


if __name__ == "__main__":
    main()
