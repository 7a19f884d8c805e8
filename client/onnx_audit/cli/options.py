"""Options that several commands share, and the connection that they describe."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from onnx_audit import v1
from onnx_audit.cli.access import ACCESS_OPTIONS, access_taken
from onnx_audit.client import Client
from onnx_audit.configs import input_spec, load_input_spec, merged
from onnx_audit.embedded import EmbeddedService, default_data_folder
from onnx_audit.errors import Unavailable

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> float | None:
    """Reads a length of time such as 90, 90s, 10m or 2h, as an option's callback."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value.strip())
    if match is None or float(match.group(1)) == 0:
        raise click.BadParameter(f"{value!r} is not a length of time; write 90s, 10m or 2h")
    return float(match.group(1)) * _SECONDS[match.group(2)]


def listed(expected: str) -> Any:  # noqa: ANN401 - a callback as click wants it
    """Returns an option's callback that reads names between commas; `expected` is for errors."""

    def read(
        _context: click.Context, _parameter: click.Parameter, value: str | None
    ) -> list[str] | None:
        if value is None:
            return None
        names = [name.strip() for name in value.split(",") if name.strip()]
        if not names:
            raise click.BadParameter(f"{value!r}; expected {expected}")
        return names

    return read


def chosen(known: Mapping[str, int]) -> Any:  # noqa: ANN401 - a callback as click wants it
    """Returns an option's callback that reads some of the known names between commas."""
    expected = f"some of {', '.join(known)}"
    read_names = listed(expected)

    def read(
        context: click.Context, parameter: click.Parameter, value: str | None
    ) -> list[int] | None:
        names = read_names(context, parameter, value)
        if names is None:
            return None
        if any(name.lower() not in known for name in names):
            raise click.BadParameter(f"{value!r}; expected {expected}")
        return [known[name.lower()] for name in names]

    return read


def joined_options(
    command: CommandT,
    parameter: str,
    options: Sequence[Callable[..., Any]],
    take: Callable[[dict[str, Any]], Any],
) -> CommandT:
    """Adds options to a command that takes one parameter instead.

    Args:
        command: The command.
        parameter: The parameter.
        options: What click.option returns, in the order of the help.
        take: Takes the options' values out of the command's arguments, and makes of them that of
            the parameter.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as click calls it
        value = take(kwargs)
        return command(*args, **{parameter: value}, **kwargs)

    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value] # the decorators keep what the caller sees


@dataclass(frozen=True)
class Connection:
    """Which service to talk to: one that runs already, or one for this command alone.

    Attributes:
        server: Address of a service, or None for a service of our own.
        data: Data folder of a service of our own.
        access: Further arguments of the client of a service that runs already.
    """

    server: str | None
    data: Path
    access: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[Client]:
        """A client of the service, which is started first if it is ours."""
        if self.server is not None:
            with Client(self.server, **self.access) as client:
                yield client
            return
        with EmbeddedService(self.data) as service, Client(service.target) as client:
            try:
                yield client
            except Unavailable as error:
                # Its log says more than the broken connection.
                raise service.died() or error from error


def connection_options(command: CommandT) -> CommandT:
    """Adds --server and its company, and --data, joined into the parameter `connection`."""
    options = (
        click.option(
            "--server",
            metavar="HOST:PORT",
            envvar="ONNX_AUDIT_SERVER",
            show_envvar=True,
            help="Service to use, with https:// before it for TLS; without one, one is started on "
            "this machine for the command.",
        ),
        click.option(
            "--data",
            metavar="DIR",
            type=click.Path(file_okay=False, path_type=Path),
            help="Data folder of the service on this machine.  "
            "[default: $XDG_DATA_HOME/onnx-audit]",
        ),
    )

    def take(given: dict[str, Any]) -> Connection:
        server, data = given.pop("server"), given.pop("data")
        access = access_taken(given)
        return Connection(server or None, data or default_data_folder(), access if server else {})

    return joined_options(command, "connection", (*options, *ACCESS_OPTIONS), take)


def spec_options(command: CommandT) -> CommandT:
    """Adds the options of the input spec, joined into the parameter `spec`."""
    return joined_options(command, "spec", _SPEC_OPTIONS, _spec_taken)


def _spec_taken(given: dict[str, Any]) -> v1.InputSpec:
    file: Path | None = given.pop("spec_file")
    settings = {name: given.pop(name) for name in _SPEC_FLAGS}
    return _spec_from_flags(file, given.pop("box"), settings)


_SPEC_FLAGS: Final = (
    "lower",
    "upper",
    "mean",
    "std",
    "probe_layout",
    "model_layout",
    "channel_order",
    "input_name",
    "divisor",
)
_LAYOUTS: Final = click.Choice(["flat", "chw", "hwc"])
_SPEC_OPTIONS: Final = (
    click.option("--box", metavar="LOW,HIGH", help="Shorthand for --lower LOW --upper HIGH."),
    click.option("--lower", metavar="N[,N...]", help="Smallest allowed probe values."),
    click.option("--upper", metavar="N[,N...]", help="Largest allowed probe values."),
    click.option("--mean", metavar="N[,N...]", help="Subtracted from a probe.  [default: 0]"),
    click.option(
        "--std", metavar="N[,N...]", help="What it is divided by after that.  [default: 1]"
    ),
    click.option("--probe-layout", type=_LAYOUTS, help="Order of a probe's axes."),
    click.option("--model-layout", type=_LAYOUTS, help="Order of the model input's axes."),
    click.option(
        "--channel-order",
        type=click.Choice(["same", "reversed"]),
        help="Of the model relative to the probes: reversed for RGB probes and a BGR model.",
    ),
    click.option("--input-name", metavar="NAME", help="The model's input, if it has several."),
    click.option(
        "--divisor",
        metavar="N",
        help="Stored probe values are divided by it.  [default: 255 for uint8, else 1]",
    ),
    click.option(
        "--spec",
        "spec_file",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file with these settings (input_name, lower, upper, mean, std, probe_layout, "
        "model_layout, channel_order, divisor); options stand in for its values.",
    ),
)


def _spec_from_flags(
    file: Path | None, box: str | None, settings: dict[str, str | None]
) -> v1.InputSpec:
    """The spec that file and options describe together; options are stronger."""
    if box is not None:
        ends = box.split(",")
        if len(ends) != 2:
            raise click.UsageError(f"--box is {box!r}; expected two numbers, as in --box 0,1")
        for name, end in zip(("lower", "upper"), ends, strict=True):
            if settings[name] is not None:
                raise click.UsageError(f"--box and --{name} say the same; use one of them")
            settings[name] = end
    base = load_input_spec(file) if file is not None else v1.InputSpec()
    return merged(base, input_spec(settings, "options"))
