"""The page as one file: markup, style, scripts and contents put together so that nothing in them can do harm."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from gfi_lightning.errors import UsageError
from gfi_lightning.recording.history import History
from gfi_lightning.recording.report.contents import contents

_ASSETS = files("gfi_lightning.recording.report") / "assets"
_SCRIPTS = ("data.js", "pictures.js", "samples.js", "charts.js", "curves.js", "controls.js", "main.js")


def write_report(histories: Mapping[str, History], path: str | Path) -> int:
    """Write the page of one or several runs: a single file that needs neither a server nor the network.

    Args:
        histories: of the runs, by the names to show.
        path: of the file, which is replaced if it is there.

    Returns:
        The file's size in bytes.

    Raises:
        UsageError: there is no run, or one without a step.
        OSError: the file cannot be written.
    """
    if not histories:
        raise UsageError("histories={} holds no run to report on: give at least one.")
    for name, history in histories.items():
        if not len(history):
            raise UsageError(f"The run {name!r} has no steps yet: report on it when the first maps are written.")
    page = _page(", ".join(histories), contents(histories))
    Path(path).write_bytes(page)
    return len(page)


def _page(title: str, values: Mapping[str, Any]) -> bytes:
    style, scripts = _asset("style.css"), [_asset(name) for name in _SCRIPTS]
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {' '.join(map(_source, scripts))}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = Template(_asset("page.html")).substitute(
        policy=policy,
        title=html.escape(title),
        style=style,
        contents=_embedded(values),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )
    # A folder's name may hold bytes that are no text in any encoding.
    return page.encode("utf-8", "replace")


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _source(code: str) -> str:
    """The one piece of code that a policy lets run, by its checksum."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode('ascii')}'"


def _embedded(values: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element: no text in it can end the element or start a comment."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))  # ASCII alone, so without U+2028 and U+2029
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
