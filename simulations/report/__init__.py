"""The report of a comparison: a page that opens without network, a text, tables, figures, and the closing screen."""

from simulations.report.files import write
from simulations.report.summary_table import screen

__all__ = ["screen", "write"]
