"""Options of the auditor `transfer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from onnx_audit import v1
from onnx_audit.cli.options import CommandT, chosen, joined_options
from onnx_audit.errors import ConfigError
from onnx_audit.requests import is_content_name

_ATTACKS: Final = {
    v1.TransferAttack.Name(attack)
    .removeprefix("TRANSFER_ATTACK_")
    .lower()
    .replace("_", "-"): attack
    for attack in v1.TransferAttack.values()
    if attack != v1.TRANSFER_ATTACK_UNSPECIFIED
}
_SHARED: Final = ("budget", "max_probes")
"""Settings that distortion and transfer have alike."""


def transfer_options(command: CommandT) -> CommandT:
    """Adds the options of transfer, joined into the parameter `transfer`."""
    return joined_options(command, "transfer", _OPTIONS, _taken)


def _taken(given: dict[str, Any]) -> v1.TransferConfig:
    return v1.TransferConfig(
        peers=given.pop("peers"), tags=given.pop("tags"), attacks=given.pop("attacks")
    )


def apply_transfer(
    options: v1.TransferConfig, distortion: v1.DistortionConfig, configs: v1.AuditorConfigs
) -> None:
    """Puts options in the place of a configuration's values.

    Peers are added to those of the configuration. Budget and number of probes are settings of
    distortion, too; where only transfer runs, they are taken out of `distortion`.

    Raises:
        ConfigError: An option is given, and transfer does not run; or a peer is no file.
    """
    if not configs.HasField("transfer"):
        for field, _ in options.ListFields():
            flag = "peer" if field.name == "peers" else field.name
            raise ConfigError(
                f"--{flag} is a setting of transfer, which does not run; add --auditors transfer"
            )
        return
    target = configs.transfer
    target.peers.extend(options.peers)
    target.tags.update(options.tags)
    if options.attacks:
        target.attacks[:] = options.attacks
    for name in _SHARED:
        if value := getattr(distortion, name):
            setattr(target, name, value)
            if not configs.HasField("distortion"):
                distortion.ClearField(name)
    for peer in target.peers:
        if not is_content_name(peer.model, "models") and not Path(peer.model).is_file():
            raise ConfigError(
                f"peer {peer.model!r} is neither a file nor of the form models/{{sha256}}"
            )


def _peers(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> list[v1.PeerModel]:
    peers = []
    for value in values:
        model, *tags = value.split(",")
        peers.append(v1.PeerModel(model=model, tags=_pairs(tags)))
    return peers


def _tags(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> dict[str, str]:
    return _pairs(value.split(",")) if value else {}


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key.strip() or not separator:
            raise click.BadParameter(f"{text!r} is no tag; write KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


_OPTIONS: Final = (
    click.option(
        "--peer",
        "peers",
        metavar="MODEL[,KEY=VALUE...]",
        multiple=True,
        callback=_peers,
        help="Another model for transfer, an ONNX file or models/{sha256}, with tags such as "
        "architecture=cnn; once for each. Input specs and label maps go into --config.",
    ),
    click.option(
        "--tags",
        metavar="KEY=VALUE[,...]",
        callback=_tags,
        help="Tags of the audited model for transfer, which sums up the pairs that differ in each: "
        "architecture, training_set, init, hyperparameters, release, precision.",
    ),
    click.option(
        "--attacks",
        metavar="NAME[,NAME...]",
        callback=chosen(_ATTACKS),
        help=f"Examples of transfer: {', '.join(_ATTACKS)}.  [default: minimal, momentum, and "
        "ensemble from three models on]",
    ),
)
