"""report.html: what a build made and how well, for a person to look at.

contents    what the page speaks of, read from a generation's files
projection  the corpus in two dimensions
figures     Matplotlib draws; svg turns a drawing into a part of the page
page        sentences and tables, and the template that they fill
"""

from __future__ import annotations

from indexer.report.contents import ReportFacts
from indexer.report.page import write_report, write_report_of

__all__ = ["ReportFacts", "write_report", "write_report_of"]
