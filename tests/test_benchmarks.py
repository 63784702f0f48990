"""The benchmarks that need a machine of their own: that they run at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gangs.contenders import OURS


@pytest.mark.slow
def test_the_gangs_of_the_gpu_script_run_without_a_gpu(tmp_path: Path) -> None:
    """Two ranks hold shards on one device: no piece of host memory is larger than their share."""
    costs = gpu.gangs(tmp_path, 6, 1, "cpu", ranks=[2], contenders=[OURS])
    cost = costs[2, OURS]
    assert cost.durable >= cost.stall > 0
    assert cost.restore > 0
    assert 0.9 < cost.save_largest < 1.05
