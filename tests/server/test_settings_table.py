"""The table of settings in the documentation."""

from __future__ import annotations

import importlib.util

from tests.service import ROOT


def test_the_table_of_settings_is_fresh() -> None:
    """docs/operations.md has every setting as settings.py says it now."""
    spec = importlib.util.spec_from_file_location(
        "settings_table", ROOT / "docs" / "settings_table.py"
    )
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    assert table.PAGE.read_text() == table.page(), "run `make settings`"
