"""Writes the table of settings in docs/operations.md from settings.py; a test checks that."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path

from pydantic.fields import FieldInfo

from onnx_audit_server import settings

PAGE = Path(__file__).with_name("operations.md")
BEGIN, END = "<!-- settings: made by `make settings` -->\n", "<!-- end of settings -->\n"
HEAD = "| `ONNX_AUDIT_...` | default | meaning |\n|---|---|---|\n"
COMPUTED = {"data": "`~/.local/share/onnx-audit`", "threads": "number of CPUs"}
"""Defaults that depend on the machine."""
GIB = 1 << 30


def docstrings() -> Mapping[str, str]:
    """What is written below each field of the settings."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(settings.Settings)))
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    found = {}
    for field, below in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def default(name: str, field: FieldInfo) -> str:
    """The default of a field, as one writes it in the environment."""
    if field.default_factory is not None:
        return COMPUTED[name]
    value = field.default
    if value is None or value == "":
        return "empty"
    if isinstance(value, bool | tuple | list | dict):
        return f"`{json.dumps(value)}`"
    if isinstance(value, int | float):
        size = f" ({value // GIB} GiB)" if value >= GIB and value % GIB == 0 else ""
        return f"`{value:.15g}`{size}"
    return f"`{value}`"


def render() -> str:
    """Returns the table.

    Raises:
        KeyError: A field has no docstring, or a computed default no words.
    """
    meaning = docstrings()
    rows = [
        f"| `{name.upper()}` | {default(name, field)} | {meaning[name]} |\n"
        for name, field in settings.Settings.model_fields.items()
    ]
    return HEAD + "".join(rows)


def page() -> str:
    """Returns the whole page with the table as it has to be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + render() + END + after


if __name__ == "__main__":
    PAGE.write_text(page())
