"""Has processes that are started with ``FAKE_ENGINE`` take the fake engine (tests/sweep)."""

import os

if os.environ.get("FAKE_ENGINE"):
    from tests.sweep.fakeengine import install

    install()
