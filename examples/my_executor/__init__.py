# An executor of your own: this class, and conf/executor/timebox.yaml, which names it.
#   cd examples
#   normbench sweep --config-dir my_executor/conf executor=timebox +experiment=quickstart
"""An executor that trains until its time is up; repeating the sweep trains the remaining runs."""

import time

from normbench.errors import UserError
from normbench.sweep.executors.inline import Inline


class TimeBox(Inline):
    """Train one run after another in this process, and start none once the time is up.

    An executor has three methods: ``allocate`` returns the names of its slots, ``check`` the
    reasons why configs cannot be trained, and ``run`` trains cells. Inline provides the first two.

    Args:
        minutes: Time after which no run is started.
    """

    def __init__(self, *, minutes):
        super().__init__()
        if not minutes > 0:
            raise UserError(f"executor.minutes must be above 0, got {minutes}")
        self.seconds = 60 * minutes

    def run(self, cells, context, observer, stop):
        end = time.monotonic() + self.seconds
        for cell in cells:
            if time.monotonic() > end:
                stop.request()
            super().run([cell], context, observer, stop)  # trains nothing after a request to stop
