"""From a page's content to one HTML file that needs nothing else: style, script and pictures are in it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from importlib.resources import files
from pathlib import Path

from pimserve import __version__
from pimserve.cluster.base.files import output_file, refuse_results
from pimserve.cluster.base.whole_folders import made_folder
from pimserve.cluster.report.content import Page
from pimserve.errors import InputError

_EXISTS = "exists already; give another file with --out, or --force to replace it"
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # which no document may hold
_PARTS = ("page.html.j2", "page.css", "page.js")


def html(page: Page) -> str:
    """The document. Names and texts of runs are escaped: they may be anything."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 slow
    from markupsafe import Markup  # noqa: PLC0415

    part = {name: files(__package__).joinpath(name).read_text(encoding="utf-8") for name in _PARTS}
    script = part["page.js"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    text: str = environment.from_string(part["page.html.j2"]).render(
        page=page,
        version=__version__,
        style=Markup(part["page.css"]),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return _CONTROLS.sub("\ufffd", text)


def write(text: str, out: Path, *, force: bool) -> None:
    """Write the file whole or not at all.

    Raises:
        InputError: it exists already and is not to be replaced, or cannot be written.
    """
    with made_folder(out.parent, out), output_file(out, None if force else _EXISTS) as file:
        file.write(text)


def refuse_existing(out: Path, *, force: bool) -> None:
    """Refuse a file that exists, unless it is to be replaced and no run's, and whatever is no file.

    Raises:
        InputError: so it is.
    """
    if out.is_symlink():  # /dev/stdout, too: what it points to may be any file
        raise InputError(str(out), "is a link, which a report neither follows nor replaces; name a file with --out")
    if out.exists() and not out.is_file():
        raise InputError(str(out), "is no file")
    refuse_results(Path(os.path.realpath(out)), out)
    if out.exists() and not force:
        raise InputError(str(out), _EXISTS)
