# A logger of your own: this class, and conf/logger/csv.yaml, which names it.
#   cd examples
#   normbench run --config-dir my_logger/conf logger=csv norm=gn arch=resnet8 dataset=digits
"""One CSV file per run, with one line per epoch."""

import csv

from normbench.engine.observer import Logger, numbers


class Csv(Logger):
    """Write the rows of a run to ``metrics.csv`` in its folder."""

    name = "csv"

    def start(self, run, config, rows):
        """Start the file over with the rows of earlier sessions, so that each appears once."""
        self.path = run.path / "metrics.csv"
        self.path.unlink(missing_ok=True)
        for row in rows:
            self.row(row)

    def row(self, row):
        values = numbers(row)
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, values)
            if is_new:
                writer.writeheader()
            writer.writerow(values)

    def end(self, summary):
        """Do nothing: no file is left open."""
