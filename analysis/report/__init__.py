"""A sweep as one HTML page that opens from disk: no server, no network, nothing to install.

python -m analysis report SWEEP      writes reports/SWEEP.html

``content`` says what the page is about as plain JSON, ``page`` puts that, Plotly, and the files of
``assets/`` into one document. The same store gives the same bytes.
"""

from __future__ import annotations

from analysis.report.page import Report, write_report

__all__ = ["Report", "write_report"]
