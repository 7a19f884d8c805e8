"""Options of the auditor `distortion`."""

from __future__ import annotations

from typing import Any, Final

import click

from onnx_audit import v1
from onnx_audit.cli.options import CommandT, chosen, joined_options, listed
from onnx_audit.configs import BUDGETS, budget
from onnx_audit.errors import ConfigError

_NORMS: Final = {"l2": v1.NORM_L2, "linf": v1.NORM_LINF, "l1": v1.NORM_L1, "l0": v1.NORM_L0}
_METHODS: Final = {
    "projected": v1.SEARCH_METHOD_PROJECTED,
    "lbfgs": v1.SEARCH_METHOD_LBFGS,
    "penalised": v1.SEARCH_METHOD_PENALISED,
}
_NOISE: Final = {
    "gaussian": v1.NOISE_KIND_GAUSSIAN,
    "uniform": v1.NOISE_KIND_UNIFORM,
    "salt-and-pepper": v1.NOISE_KIND_SALT_AND_PEPPER,
}
_AUTO_HIDDEN: Final = 3
_TARGET_MODES: Final = {
    "untargeted": v1.TARGET_MODE_UNTARGETED,
    "least-likely": v1.TARGET_MODE_LEAST_LIKELY,
    "every-other-class": v1.TARGET_MODE_EVERY_OTHER_CLASS,
}


def distortion_options(command: CommandT) -> CommandT:
    """Adds the options of distortion, joined into the parameter `distortion`."""
    return joined_options(command, "distortion", _OPTIONS, _taken)


def _taken(given: dict[str, Any]) -> v1.DistortionConfig:
    budget = given.pop("budget")
    config = v1.DistortionConfig(
        **{name: value for name in _FLAGS if (value := given.pop(name)) is not None}
    )
    if budget is not None:
        config.MergeFrom(budget)
    _split_hidden(config)
    if config.HasField("target_class"):
        if config.target_mode:
            raise click.UsageError("--target-class and --target-mode exclude each other")
        config.target_mode = v1.TARGET_MODE_GIVEN
    return config


def _split_hidden(config: v1.DistortionConfig) -> None:
    """Takes a number, or the word "auto", out of the names of hidden values."""
    if len(config.hidden_values) != 1:
        return
    (name,) = config.hidden_values
    if name == "auto" or (name.isascii() and name.isdigit()):
        config.hidden_count = _AUTO_HIDDEN if name == "auto" else int(name)
        del config.hidden_values[:]


def apply(options: v1.DistortionConfig, configs: v1.AuditorConfigs) -> None:
    """Puts options in the place of a configuration's values.

    Raises:
        ConfigError: An option is given, and distortion does not run.
    """
    fields = {field.name: value for field, value in options.ListFields()}
    if not fields:
        return
    if not configs.HasField("distortion"):
        flag = next(iter(fields)).removesuffix("_seconds").replace("_", "-")
        raise ConfigError(f"--{flag} is a setting of distortion, which does not run")
    kept = {field.name: value for field, value in configs.distortion.ListFields()}
    if options.budget or options.budget_seconds:
        kept.pop("budget", None)
        kept.pop("budget_seconds", None)
    if options.target_mode:
        kept.pop("target_class", None)
    if options.hidden_count or options.hidden_values:
        kept.pop("hidden_count", None)
        kept.pop("hidden_values", None)
    configs.distortion.CopyFrom(v1.DistortionConfig(**(kept | fields)))


def _budget(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> v1.DistortionConfig | None:
    if value is None:
        return None
    try:
        return budget(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


_FLAGS: Final = (
    "norms", "target_mode", "target_class", "methods", "max_probes", "black_box_runs",
    "hidden_values", "noise", "noise_draws", "exact_probes",
)  # fmt: skip
_OPTIONS: Final = (
    click.option(
        "--norms",
        metavar="NAME[,NAME...]",
        callback=chosen(_NORMS),
        help="Norms in which distortion is measured: l2, linf, l1, l0.  [default: l2]",
    ),
    click.option(
        "--budget",
        metavar="NAME|N|TIME",
        callback=_budget,
        help="Gradient evaluations of distortion per probe, norm and class aimed at: "
        + ", ".join(f"{name} ({count:,})" for name, count in BUDGETS.items())
        + ", a number, or what a time such as 10m allows on the machine that runs it.  "
        "[default: standard]",
    ),
    click.option(
        "--target-mode",
        type=click.Choice(list(_TARGET_MODES)),
        callback=lambda _context, _parameter, name: _TARGET_MODES.get(name),
        help="What the answer has to become: any other class, the one with the lowest score, or "
        "each other class in turn (a search for each; at most 100 classes).  [default: untargeted]",
    ),
    click.option(
        "--target-class",
        metavar="N",
        type=click.IntRange(min=0),
        help="The class that every answer has to become, in the place of --target-mode.",
    ),
    click.option(
        "--methods",
        metavar="NAME[,NAME...]",
        callback=chosen(_METHODS),
        help="Searches that share the budget: projected; for L2 alone also lbfgs (Szegedy et al. "
        "2013) and penalised.  [default: projected]",
    ),
    click.option(
        "--max-probes",
        type=click.IntRange(min=1),
        help="Audit distortion on so many probes only, drawn with the seed.",
    ),
    click.option(
        "--black-box-runs",
        metavar="N",
        type=click.IntRange(min=20),
        help="Answers of the model that the search without gradients may ask for, per probe, norm "
        "and class aimed at. It runs where gradients vanish or are surrogates, and where nothing "
        "was confirmed.  [default: 1000]",
    ),
    click.option(
        "--hidden-values",
        metavar="auto|N|NAME[,NAME...]",
        callback=listed("auto, a number, or names of values"),
        help="Hidden values whose smallest change is looked for too: their names in the graph, or "
        "so many spread over the depth (auto: 3).",
    ),
    click.option(
        "--noise",
        metavar="NAME[,NAME...]",
        callback=chosen(_NOISE),
        help="Random noise to compare with: gaussian, uniform, salt-and-pepper. The scale that "
        "changes half of the answers is looked for.",
    ),
    click.option(
        "--noise-draws",
        metavar="N",
        type=click.IntRange(min=8, max=1024),
        help="Draws of noise per probe and kind.  [default: 32]",
    ),
    click.option(
        "--exact-probes",
        metavar="N",
        type=click.IntRange(min=0),
        help="Probes whose exact optimum is worked out, where the model is linear or has one layer "
        "of at most 24 ReLUs.  [default: 32]",
    ),
)
