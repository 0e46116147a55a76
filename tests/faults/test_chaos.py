"""Twenty seconds of chaos: processes are killed, frozen and cut off while clients submit, and nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks/chaos.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it reads memory and file descriptors from /proc")
def test_nothing_is_lost_done_twice_or_misdelivered_in_twenty_seconds_of_chaos(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--minutes", "0.3", "--seed", "5", "--backends", "3", "--clients", "8", "--report", str(report)]
    done = subprocess.run(
        [sys.executable, str(CHAOS), *options], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(report.read_text())
    assert figures["problems"] == []
    assert figures["faults"]["all"] >= 5
    assert figures["prompts"]["accepted"] >= 10
    assert figures["audit"]["pictures compared"] >= 10
