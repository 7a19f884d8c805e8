"""The image: built without a registry, and run as a cluster would, on a read-only root.

ONNX_AUDIT_BASE_TAR names a root file system (Debian with python3) to begin with; else mmdebstrap
makes one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import models
from tests.service import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("buildah"), reason="needs root and `make buildah`"
    ),
]

EPOCH = "1764000000"
SBOM = ROOT / ".tools-sbom" / "bin" / "python"
USER = "65532"
PACKAGES = "python3,ca-certificates"
IN_IMAGE = """
set -e
mount --bind "$1" "$2" && mount -o remount,ro,bind "$2"
mount -t tmpfs -o mode=1777 tmpfs "$2/tmp"
mount -t tmpfs -o uid=65532,gid=65532,mode=700 tmpfs "$2/data"
mount -t proc proc "$2/proc" && mount --rbind /dev "$2/dev"
cp "$3"/given/* "$2/tmp/" && chmod 644 "$2"/tmp/*
status=0
chroot --userspec=65532:65532 --groups= "$2" /usr/bin/env -i $4 sh -euc "$5" || status=$?
[ ! -d "$2/tmp/out" ] || cp -R "$2/tmp/out" "$3/"
exit $status
"""


class Buildah:
    """Images in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        places = f"--root {folder / 'root'} --runroot {folder / 'run'}"
        self.command = f"buildah --storage-driver vfs {places}"

    def __call__(self, *arguments: str | Path) -> str:
        """Runs a command; returns what it says."""
        done = subprocess.run(
            (*self.command.split(), *arguments),
            env=os.environ | {"BUILDAH_ISOLATION": "chroot"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout.strip()


def pip_options(folder: Path) -> list[str]:
    """What brings this machine's way to packages into the build, and not into the image."""
    listed = subprocess.run(
        (sys.executable, "-m", "pip", "config", "list"), check=True, capture_output=True, text=True
    ).stdout
    pairs = dict(line.partition("=")[::2] for line in listed.splitlines() if "=" in line)
    settings = {name.rpartition(".")[2]: value.strip("'") for name, value in pairs.items()}
    settings.pop("constraint", None)
    conf = folder / "pip.conf"
    conf.write_text("[global]\n" + "".join(f"{n} = {v}\n" for n, v in sorted(settings.items())))
    options = ["--secret", f"id=pip_conf,src={conf}"]
    for word in {w.removeprefix("file://") for v in settings.values() for w in v.split()}:
        path = Path(word)
        if path.is_absolute() and path.exists():
            place = path if path.is_dir() else path.parent
            # The index is a folder whose pages point into its neighbours.
            place = place.parent if place.name == "simple" else place
            options += ["--volume", f"{place}:{place}:ro"]
    return options


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """The built image is localhost/onnx-audit in it."""
    folder = tmp_path_factory.mktemp("image")
    context = folder / "context"
    context.mkdir()
    if given := os.environ.get("ONNX_AUDIT_BASE_TAR"):
        shutil.copy(given, context / "base.tar")
    else:
        command = ("mmdebstrap", "--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io")
        more = (f"--include={PACKAGES}", "bookworm", str(context / "base.tar"))
        subprocess.run((*command, *more), check=True)
    (context / "Containerfile").write_text("FROM scratch\nADD base.tar /\n")
    program = Buildah(folder)
    program("build", "--quiet", "--tag", "localhost/base", context)
    options = ["--build-arg", "BASE_IMAGE=localhost/base", "--format", "docker"]
    options += ["--timestamp", EPOCH, *pip_options(folder)]
    for name, value in (("VERSION", "0.1.0"), ("REVISION", "abc"), ("CREATED", "2025-11-24")):
        options += ["--build-arg", f"{name}={value}"]
    program(
        *("build", "--quiet", *options, "--tag", "localhost/onnx-audit"),
        *("--file", ROOT / "deploy" / "Dockerfile", ROOT),
    )
    yield program
    shutil.rmtree(folder)  # several gigabytes


@pytest.fixture(scope="module")
def root(buildah: Buildah) -> Iterator[Path]:
    """The image's files."""
    container = buildah("from", "localhost/onnx-audit")
    yield Path(buildah("mount", container))
    buildah("umount", container)


def image_environment(buildah: Buildah) -> dict[str, str]:
    config = json.loads(buildah("inspect", "--type", "image", "localhost/onnx-audit"))
    return dict(pair.split("=", 1) for pair in config["Docker"]["config"]["Env"])


def test_the_image_says_what_it_is(buildah: Buildah) -> None:
    """User, annotations, health check and time are those of the Dockerfile and its arguments."""
    image = json.loads(buildah("inspect", "--type", "image", "localhost/onnx-audit"))["Docker"]
    assert image["config"]["User"] == f"{USER}:{USER}"
    assert image["config"]["Healthcheck"]["Test"][0] == "CMD"
    assert image["created"].startswith("2025-11-24T16:00:00")
    labels = image["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["org.opencontainers.image.revision"] == "abc"


def test_the_image_holds_nothing_that_builds(root: Path) -> None:
    """Neither pip nor a compiler, nor what the build was told about indexes."""
    site = root / "opt" / "onnx-audit" / "lib"
    assert not [*site.glob("python3*/site-packages/pip"), *root.glob("pip/*")]
    assert not (root / "etc" / "pip.conf").exists()
    programs = {
        path.name
        for place in ("usr/bin", "opt/onnx-audit/bin")
        for path in (root / place).iterdir()
    }
    assert "onnx-audit" in programs
    assert not [
        n for n in programs if n in ("cc", "gcc", "ld", "as", "make") or n.startswith("pip")
    ]


def test_the_demos_audit_passes_in_it(buildah: Buildah, root: Path, tmp_path: Path) -> None:
    """As its user, on a read-only root, it finds the same figures as outside."""
    given = tmp_path / "given"
    given.mkdir()
    model = models.save(models.mlp((16, 24, 4), seed=0), given / "model.onnx")
    inputs = np.random.default_rng(0).random((24, 16), np.float32)
    np.savez(given / "probes.npz", inputs=inputs)
    audit = "--probes probes.npz --box 0,1 --auditors distortion,lipschitz --budget quick"
    outside = tmp_path / "outside"
    command = ("onnx-audit", "run", model.name, *audit.split(), "--data", str(tmp_path / "d"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        (*command, "--out", str(outside)),
        cwd=given,
        env=os.environ | {"PATH": path, "ONNX_AUDIT_THREADS": "1"},
        check=True,
    )
    place = tmp_path / "root"
    place.mkdir()
    variables = image_environment(buildah) | {"ONNX_AUDIT_THREADS": "1"}
    script = (
        "! touch /x 2>/dev/null; test $(id -u) = 65532; cd /tmp;"
        f"onnx-audit run model.onnx {audit} --data /data --out /tmp/out"
    )
    words = " ".join(f"{name}={value}" for name, value in variables.items())
    done = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--propagation", "private"),
            *("bash", "-c", IN_IMAGE, "bash", root, place, tmp_path, words, script),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reports = [
        json.loads((folder / "report.json").read_text()) for folder in (outside, tmp_path / "out")
    ]
    for section in ("distortion", "lipschitz"):
        first, second = (report[section] for report in reports)
        for name in ("norms", "certificates", "network"):
            assert first.get(name) == second.get(name), f"{section}.{name}"


@pytest.mark.skipif(not SBOM.exists(), reason="`make .tools-sbom/installed` brings CycloneDX")
def test_the_images_bill_of_materials(buildah: Buildah, tmp_path: Path) -> None:
    """It has the packages of Python and those of Debian."""
    path = tmp_path / "bill.json"
    script = ROOT / "deploy" / "image" / "bill.sh"
    subprocess.run([script, buildah.command, "localhost/onnx-audit", SBOM, path], check=True)
    urls = [component["purl"] for component in json.loads(path.read_text())["components"]]
    assert any(url.startswith("pkg:pypi/torch@") for url in urls)
    assert any(url.startswith("pkg:deb/debian/libc6@") for url in urls)
