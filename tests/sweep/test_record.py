"""The record folders of sweeps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from normbench.store.files import StoreError
from normbench.store.store import SWEEPS, Store
from normbench.sweep.plan import SweepPlan
from normbench.sweep.record import Record, records

TOGETHER = 16


def test_sweeps_started_at_the_same_time_get_separate_records(tmp_store):
    gate = Barrier(TOGETHER)

    def begin(_):
        gate.wait()
        return Record.begin(Store(tmp_store), SweepPlan(()), ["normbench", "sweep"], {}, {})

    with ThreadPoolExecutor(TOGETHER) as pool:
        begun = list(pool.map(begin, range(TOGETHER)))
    assert len({record.name for record in begun}) == TOGETHER
    assert {record.name for record in records(Store(tmp_store))} == {
        record.name for record in begun
    }


def test_record_that_cannot_be_created_raises_a_store_error(tmp_store):
    (tmp_store / SWEEPS).write_text("in the way")
    with pytest.raises(StoreError, match="make"):
        Record.begin(Store(tmp_store), SweepPlan(()), ["normbench"], {}, {})
