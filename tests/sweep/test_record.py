"""The folders of sweeps' records."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from normbench.store.files import StoreError
from normbench.store.store import SWEEPS, Store
from normbench.sweep.plan import SweepPlan
from normbench.sweep.record import Record, records

TOGETHER = 16


def test_sweeps_of_one_command_begun_together_get_a_record_each(tmp_store):
    gate = Barrier(TOGETHER)

    def begin(_):
        gate.wait()
        return Record.begin(Store(tmp_store), SweepPlan(()), ["normbench", "sweep"], {}, {})

    with ThreadPoolExecutor(TOGETHER) as pool:
        begun = list(pool.map(begin, range(TOGETHER)))
    assert len({record.name for record in begun}) == TOGETHER
    assert {each.name for each in records(Store(tmp_store))} == {each.name for each in begun}


def test_a_record_that_cannot_be_made_says_so(tmp_store):
    (tmp_store / SWEEPS).write_text("in the way")
    with pytest.raises(StoreError, match="make"):
        Record.begin(Store(tmp_store), SweepPlan(()), ["normbench"], {}, {})
