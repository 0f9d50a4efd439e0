"""Content, Plotly and the files of ``assets/`` in one HTML document.

The document names by its hash each script that may run, and allows no connection: a text of a run
that found its way into the markup could neither run nor send anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from analysis.report.content import Content, content_of
from analysis.report.embedding import embedded
from rundir.errors import UserError
from rundir.files import replacing

SCRIPTS = (
    "dom.js",
    "data.js",
    "filter.js",
    "state.js",
    "colour.js",
    "charts.js",
    "leaderboard.js",
    "curves.js",
    "rates.js",
    "heatmap.js",
    "parallel.js",
    "settings.js",
    "evidence.js",
    "compare.js",
    "main.js",
)
"""Files of assets/, in the order in which they make one program."""
DIRECTORY = Path("reports")


@dataclass(frozen=True)
class Report:
    """What was written."""

    path: Path
    size: int
    """Bytes."""
    plotly: int
    """Bytes of these that are Plotly."""
    runs: int

    def __str__(self) -> str:
        return f"{megabytes(self.size)}, of which {megabytes(self.plotly)} are Plotly"


def write_report(sweep: str | None, out: Path | None = None, store: Path | str = "store") -> Report:
    """Write the page of a sweep, or of every run in the store, whole or not at all.

    Args:
        sweep: name of a sweep, or the path of its directory; every run by default.
        out: the file; by default reports/SWEEP.html.
        store: directory of the store.

    Raises:
        UserError: no store, an empty one, an unknown sweep, or a file that cannot be written.
    """
    content = content_of(sweep, Path(store))
    path = out or DIRECTORY / f"{_file_name(content.title)}.html"
    plotly = plotly_source()
    page = page_of(content, plotly).encode("utf-8", "replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"out = {path}; must be a writable file; {error.strerror}") from None
    return Report(path, len(page), len(plotly.encode()), content.runs)


def page_of(content: Content, plotly: str) -> str:
    """Return the document."""
    program = _program()
    blocks = "\n".join(
        f'<script type="application/json" id="{name}">{embedded(value)}</script>'
        for name, value in content.blocks.items()
    )
    template = Template(_asset("page.html"))
    parts = {
        "title": html.escape(content.title),
        "policy": _policy(plotly, program),
        "style": _asset("report.css"),
        "blocks": blocks,
        "plotly": plotly,
        "program": program,
        "plotly_size": megabytes(len(plotly.encode())),
    }
    # A megabyte more or less changes no figure's width by more than a byte.
    size = len(template.substitute(parts, page_size="9.9 MB").encode("utf-8", "replace"))
    return template.substitute(parts, page_size=megabytes(size))


def plotly_source() -> str:
    """Return Plotly's JavaScript as its Python package carries it, fit for a script element."""
    from plotly.offline import get_plotlyjs

    # A browser reads every line end as \n, and the policy's hash is of what it reads.
    source = str(get_plotlyjs()).replace("\r\n", "\n")
    return re.sub(r"<(?=/script|!--)", r"\\x3c", source, flags=re.IGNORECASE)


def megabytes(size: int) -> str:
    """Return ``5.2 MB``."""
    return f"{size / 1e6:.1f} MB"


def _program() -> str:
    parts = [_asset(name) for name in SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "\n})();\n"


def _asset(name: str) -> str:
    return files("analysis.report").joinpath(f"assets/{name}").read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    # Plotly writes a style element of its own, and its image export goes through data: and blob:.
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
    )


def _file_name(title: str) -> str:
    """Return the title as the name of a file in one directory."""
    name = re.sub(r"[^\w.=,+-]+", "-", title.replace(os.sep, "-")).strip("-.")
    return name[:100] or "sweep"
