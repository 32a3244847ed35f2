# An executor of your own: this class, and conf/executor/timebox.yaml, which names it.
#   cd examples
#   normbench sweep --config-dir my_executor/conf executor=timebox +experiment=quickstart
"""Train until the time is over; the same sweep later trains the rest."""

import time

from normbench.errors import UserError
from normbench.sweep.executors.inline import Inline


class TimeBox(Inline):
    """Train one run after the other in this process, and begin none once the time is over.

    An executor has three methods: ``place`` names the slots it has, ``check`` says which configs
    cannot be trained, and ``run`` carries out the jobs. This one has the first two from Inline.

    Args:
        minutes: Time after which no run begins.
    """

    def __init__(self, *, minutes):
        super().__init__()
        if not minutes > 0:
            raise UserError(f"executor.minutes must be above 0, got {minutes}")
        self.seconds = 60 * minutes

    def run(self, jobs, context, observer, stop):
        end = time.monotonic() + self.seconds
        for job in jobs:
            if time.monotonic() > end:
                stop.request("the time is over")
            super().run([job], context, observer, stop)  # trains nothing once it was asked to stop
