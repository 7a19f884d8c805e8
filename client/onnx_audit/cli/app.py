"""The root command, the commands that other packages add, and what exit statuses mean."""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from types import FrameType
from typing import Any, Final

import click

from onnx_audit.cli import tracing
from onnx_audit.errors import ConfigError, ModelFileError, OnnxAuditError, ProbeError
from onnx_audit.version import __version__

PLUGIN_GROUP: Final = "onnx_audit.commands"
USAGE_ERROR: Final = 2
SERVICE_ERROR: Final = 3
INTERRUPTED: Final = 128 + signal.SIGINT
TERMINATED: Final = 128 + signal.SIGTERM

_COMMANDS: Final = {
    **{name: name for name in ("attest", "audits", "compare", "demo", "gate", "policy", "report")},
    **dict.fromkeys(("models", "probes", "upload"), "resources"),
    "run": "run",
    "verify": "attest",
}
"""The module of each command of the client; a service that starts waits for none of them."""

# Commands of the server extra, with their help for where it is not installed.
_SERVER_COMMANDS: Final = {
    "serve": "Run the service: gRPC API, metrics, and a worker.",
    "tokens": "Make, list and revoke API tokens of a service.",
    "worker": "Run shards of audits for a service elsewhere.",
    "migrate": "Bring the database to the form that this version needs.",
    "gc": "Remove what has expired.",
}


class Commands(click.Group):
    """A group whose errors become exit statuses, and to which installed packages add commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as click calls it
        """All commands, those of the server extra included."""
        return sorted({*_COMMANDS, *_SERVER_COMMANDS, *_plugins()})

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - as click calls it
        cmd_name: str,
    ) -> click.Command | None:
        """A command, loaded when it is asked for."""
        if cmd_name in _COMMANDS:
            module = importlib.import_module(f"onnx_audit.cli.{_COMMANDS[cmd_name]}")
            command: click.Command = getattr(module, cmd_name)
            return command
        plugin = _plugins().get(cmd_name)
        if plugin is None:
            return _missing(cmd_name, "") if cmd_name in _SERVER_COMMANDS else None
        try:
            loaded = plugin.load()
        except ImportError as error:
            return _missing(cmd_name, f" ({error})")
        return loaded if isinstance(loaded, click.Command) else None

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares it
        """Runs the command; errors of this package end it with their message and status."""
        try:
            return super().invoke(ctx)
        except (ConfigError, ModelFileError, ProbeError) as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(USAGE_ERROR)
        except OnnxAuditError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(SERVICE_ERROR)
        except BrokenPipeError:  # whoever reads the output has left; click knows what to do
            raise
        except OSError as error:  # status 1 would say that a gate does not hold
            click.echo(f"Error: {error}", err=True)
            ctx.exit(USAGE_ERROR)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED)


def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP)}


def _missing(name: str, cause: str) -> click.Command:
    """A command in the place of one that is not installed."""

    def explain() -> None:
        raise click.UsageError(
            f"`onnx-audit {name}` needs the server extra{cause}: pip install 'onnx-audit[server]'"
        )

    return click.Command(
        name,
        callback=explain,
        help=_SERVER_COMMANDS.get(name, "Not installed completely."),
        short_help=_SERVER_COMMANDS.get(name, "Not installed completely."),
        context_settings={"ignore_unknown_options": True},
        params=[click.Argument(["arguments"], nargs=-1, expose_value=False)],
    )


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
    },
    epilog=(
        "\b\n"
        "Examples:\n"
        "  onnx-audit demo\n"
        "  onnx-audit run model.onnx --probes probes.npz --box 0,1\n"
        "  onnx-audit gate model.onnx --probes probes.npz --box 0,1 --policy baseline\n"
        "  onnx-audit report show onnx-audit-report/report.json\n"
        "\n"
        "\b\n"
        "Exit status:\n"
        "  0  done\n"
        "  1  a gate of the policy does not hold\n"
        "  2  wrong usage, unusable input files, or a verdict could not be decided\n"
        "  3  the service could not be reached or refused, or the audit failed"
    ),
)
@click.version_option(__version__, "-V", "--version", prog_name="onnx-audit")
def cli() -> None:
    """Audit ONNX models before release.

    An audit takes a model and probe inputs, finds the smallest changes that change the model's
    answers, and writes a report. Without --server everything runs on this machine.
    """
    tracing.configure()


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """Unwinds as an exception does, so that a service of our own is stopped too."""
    sys.exit(TERMINATED)


def main() -> None:
    """Runs the command line and exits with its status."""
    signal.signal(signal.SIGTERM, _terminate)
    cli(prog_name="onnx-audit")
