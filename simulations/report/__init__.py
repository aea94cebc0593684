"""The report of a comparison: a page that opens without network, a text, tables, figures, and the closing screen."""

from simulations.report.closing import screen
from simulations.report.files import write

__all__ = ["screen", "write"]
