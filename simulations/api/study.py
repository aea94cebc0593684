"""A comparison: its verdict, runs, tables and report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import ConfigError
from simulations.api import frames
from simulations.api.run import Run

if TYPE_CHECKING:
    import altair
    import pandas

    from simulations.analysis.result import Verdict


@dataclass(frozen=True)
class Study:
    """The folder of a comparison. It is read and analysed anew at each use."""

    folder: Path

    @property
    def analysis(self) -> "Verdict":
        """Every result with its interval and test, as the report has it."""
        from simulations.analysis import analyse, plan

        return analyse.analyse(*plan.read(self.folder))

    @property
    def verdict(self) -> tuple[str, ...]:
        """The verdict in sentences."""
        return self.analysis.sentences

    @property
    def failed(self) -> tuple[str, ...]:
        """The runs that do not count, each with the reason."""
        return tuple(f"{run.name}: {run.reason}" for run in self.analysis.failed)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that have begun."""
        from simulations.analysis import plan

        folders = [run.folder for run in plan.read(self.folder)[1]]
        return tuple(Run(folder) for folder in folders if (folder / "run.json").exists())

    def rows(self) -> list[dict[str, Any]]:
        """A row per finished run: setting, method, seed, the primary metric as `value`, folder `run`."""
        return [
            {"setting": run.setting, "method": run.method, "seed": run.seed, "value": value, "run": run.folder.name}
            for result in self.analysis.results.values()
            for run in result.runs
            if (value := result.values.get(run.seed)) is not None
        ]

    def frame(self) -> "pandas.DataFrame":
        """`rows` as a data frame; `fedkd.load_runs(study.folder)` has all rounds. ConfigError without pandas."""
        return frames.frame(self.rows())

    def plot(self, chart: str = "curves") -> "altair.TopLevelMixin":
        """A chart of the report: differences, curves, pareto ... Raises ConfigError if it has no such chart."""
        from simulations.report import files, vega

        drawn = {made.name: made for made in files.drawn(self.analysis)}
        if chart not in drawn:
            raise ConfigError(f"there is no chart '{chart}'", where="chart", mend=f"one of: {', '.join(drawn)}")
        return frames.chart(vega.fitted(drawn[chart], vega.FIGURE_WIDTH))

    def report(self) -> Path:
        """Write the report again; returns the path of report.html. Raises FolderError."""
        from simulations.report import files

        return files.write(self.analysis, self.folder)[0]

    def __repr__(self) -> str:
        from simulations.analysis import plan

        runs = plan.read(self.folder)[1]
        return f"<Study {self.folder}: {sum(run.is_done for run in runs)} of {len(runs)} runs>"

    def _repr_html_(self) -> str:
        from simulations.report import summary_table

        verdict = self.analysis
        table = summary_table.table(verdict)
        caption = " ".join([summary_table.headline(verdict), *verdict.sentences])
        return frames.table(table.headings, table.rows, caption)
