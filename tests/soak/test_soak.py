"""Two minutes of the soak: no healthy job is reported, and hung ones are, by their right names."""

from __future__ import annotations

import pytest

from tests.soak.job import FAULTS
from tests.soak.soak import Soak


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_healthy_is_reported_and_every_hang_is() -> None:
    said: list[str] = []
    soak = Soak(floor=4, seed=1, say=said.append)
    soak.run(120, hangs=len(FAULTS))
    assert soak.healthy_batches > 500
    assert soak.passed, soak.summary() + "\n" + "\n".join(said)
    assert {kind for kind, _ in soak.reported} == set(FAULTS)
