"""The script that writes the generated pages of docs/."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def pages_script() -> ModuleType:
    """docs/pages.py as a module of its own."""
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def current(script: ModuleType, page: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a page is as the script would write it."""
    monkeypatch.setattr(sys, "argv", ["pages.py", "--check", page])
    return script.main() == 0
