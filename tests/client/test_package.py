"""The package as its users import it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import onnx_audit
from onnx_audit import errors

BLOCKED = (
    *(
        "torch",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "sqlalchemy",
        "scipy",
        "dbos",
        "PIL",
        "sklearn",
    ),
    *("onnx_auditors", "onnx_audit_server"),
)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter in which the service's libraries cannot be imported."""
    blocker = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {BLOCKED!r}:\n"
        "            raise ImportError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    source = str(Path(onnx_audit.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", f"{blocker}sys.path.insert(0, {source!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_exported_names_exist_and_are_sorted() -> None:
    """Every name in `__all__` can be imported, and `dir` shows no other."""
    assert list(onnx_audit.__all__) == sorted(onnx_audit.__all__)
    assert dir(onnx_audit) == list(onnx_audit.__all__)
    assert [name for name in onnx_audit.__all__ if not hasattr(onnx_audit, name)] == []


def test_every_exception_is_exported() -> None:
    """No exception that the package raises has to be imported from a module of it."""
    exceptions = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert exceptions <= set(onnx_audit.__all__)


def test_both_clients_have_the_same_methods() -> None:
    """The asynchronous client offers what the synchronous one does, under the same parameters."""

    def surface(client: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(client).items()
            if not name.startswith("_")
        }

    assert surface(onnx_audit.Client) == surface(onnx_audit.AsyncClient)


def test_messages_need_no_grpc() -> None:
    """`onnx_audit.v1` can be imported and used without gRPC."""
    result = run_python(
        "import onnx_audit.v1 as v1; v1.Report(); v1.Audit(); v1.WriteRequest();"
        "sys.exit(any(name.split('.')[0] in ('grpc', 'numpy') for name in sys.modules))"
    )
    assert result.returncode == 0, result.stderr


def test_package_needs_no_heavy_library() -> None:
    """Every exported name can be imported where the service's libraries are missing."""
    result = run_python("import onnx_audit; [getattr(onnx_audit, n) for n in onnx_audit.__all__]")
    assert result.returncode == 0, result.stderr


def test_image_folder_without_pillow_says_what_to_install(tmp_path: Path) -> None:
    """Without Pillow an image folder is refused with the name of the extra."""
    (tmp_path / "x.png").touch()
    result = run_python(f"import onnx_audit; onnx_audit.load_probes({str(tmp_path)!r})")
    assert "pip install 'onnx-audit[images]'" in result.stderr


def test_server_commands_are_listed_where_the_extra_is_missing() -> None:
    """`serve` and `worker` appear in the help, and say what to install when they are run."""
    run = "from onnx_audit.cli.app import cli; cli(prog_name='onnx-audit', args={})"
    listed = run_python(run.format(["--help"]))
    assert listed.returncode == 0, listed.stderr
    assert "serve" in listed.stdout
    assert "worker" in listed.stdout
    for arguments in (["serve", "--listen", "x"], ["worker"]):
        missing = run_python(run.format(arguments))
        assert missing.returncode == 2
        assert "pip install 'onnx-audit[server]'" in missing.stderr


def test_demo_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    """The demo names its extra before it makes anything."""
    out = tmp_path / "demo"
    result = run_python(
        f"from onnx_audit.cli.app import cli; cli(args=['demo', '--out', {str(out)!r}])"
    )
    assert result.returncode == 3
    assert "pip install 'onnx-audit[demo]'" in result.stderr
    assert not out.exists()
