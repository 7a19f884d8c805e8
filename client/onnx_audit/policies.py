"""Policies from YAML: files of one's own, and those that come with the package.

What is wrong is said with its line and column, also where only the service can tell (the
expressions, which it checks against the report's types).
"""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import yaml

from onnx_audit import v1
from onnx_audit.errors import ConfigError, InvalidRequest
from onnx_audit.policy_reading import Place, read_policy

READY_MADE: Final = ("baseline", "strict", "regression-only")
"""Names of the policies that come with the package."""

_EXPRESSION_PLACE: Final = re.compile(r"line (\d+), column (\d+): (.*)", re.DOTALL)
_POLICY_FIELD: Final = re.compile(r"(?:audit\.)?policy\.(.*)")


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy with what is needed to say where in its source something is.

    Attributes:
        policy: The policy.
        label: What people call its source.
        places: Where its fields are, by path, such as "gates[2].expression"; "" is the whole.
    """

    policy: v1.Policy
    label: str
    places: Mapping[str, Place]

    def explain(self, error: InvalidRequest) -> Exception:
        """The service's error as one that names lines; itself where it is about other fields."""
        found = []
        for violation in error.field_violations:
            match = _POLICY_FIELD.fullmatch(violation.field)
            if match is None:
                return error
            found.append(self._mistake(match.group(1), violation.description))
        return ConfigError("\n".join(found)) if found else error

    @property
    def auditors(self) -> list[str]:
        """The auditors that the gates' expressions name, and distortion, without which few do."""
        expressions = " ".join(gate.expression for gate in self.policy.gates)
        names = [field.name for field in v1.AuditorConfigs.DESCRIPTOR.fields]
        return [n for n in names if n == "distortion" or re.search(rf"\b{n}\b", expressions)]

    def gate_line(self, number: int) -> int:
        """The line of a gate, counted from 1."""
        return self.places.get(f"gates[{number}]", Place()).line

    def _mistake(self, path: str, description: str) -> str:
        known = path
        while known not in self.places:
            known = known.rpartition(".")[0] if "." in known else ""
        line, column, text = 1, 1, description
        if match := _EXPRESSION_PLACE.fullmatch(description):
            line, column, text = int(match.group(1)), int(match.group(2)), match.group(3)
        line, column = self.places[known].inside(line, column)
        return f"{self.label}:{line}:{column}: {path}: {text}"


PolicyLike: TypeAlias = v1.Policy | LoadedPolicy | str | os.PathLike[str]


def policy_text(name: str) -> str:
    """The YAML of a policy that comes with the package.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in READY_MADE:
        raise ConfigError(f"there is no ready-made policy {name!r}; there are {_known()}")
    folder = importlib.resources.files("onnx_audit") / "ready_policies"
    return (folder / f"{name}.yaml").read_text(encoding="utf-8")


def load_policy(source: str | os.PathLike[str]) -> LoadedPolicy:
    """Reads a policy: a YAML file, or one that comes with the package by its name.

    Raises:
        ConfigError: It cannot be read, or is wrong; every mistake with its line and column.
    """
    if source in READY_MADE:
        return parse_policy(policy_text(str(source)), f"policy {source}")
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not a readable policy: {error}; ready-made ones are {_known()}"
        ) from error
    return parse_policy(text, str(path))


def parse_policy(text: str, label: str) -> LoadedPolicy:
    """Reads a policy from YAML.

    Args:
        text: The YAML.
        label: What error messages call its source.

    Raises:
        ConfigError: As `load_policy`.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        raise ConfigError(f"{label}:{line}:{column}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{label}: not YAML: {error}") from error
    policy, places, mistakes = read_policy(root, text)
    if mistakes:
        raise ConfigError("\n".join(f"{label}:{mistake}" for mistake in mistakes))
    return LoadedPolicy(policy, label, places)


def as_loaded(policy: PolicyLike) -> LoadedPolicy:
    """A policy in any of the forms that callers may give it in.

    Raises:
        ConfigError: As `load_policy`.
    """
    if isinstance(policy, LoadedPolicy):
        return policy
    if isinstance(policy, v1.Policy):
        return LoadedPolicy(policy, "policy", {"": Place()})
    return load_policy(policy)


def _known() -> str:
    return ", ".join(READY_MADE)
