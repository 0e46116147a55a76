"""A trace of a few jobs, predicted and played: that both can be compared, not that this machine has the time for it."""

import json
import subprocess
import sys
from pathlib import Path

AGREEMENT = Path(__file__).parents[2] / "benchmarks/agreement.py"


def test_a_trace_is_predicted_and_played_through_the_proxy(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--jobs", "6", "--scale", "0.05", "--strategy", "model_affinity", "--report", str(report)]
    done = subprocess.run(
        [sys.executable, str(AGREEMENT), *options], capture_output=True, text=True, timeout=200, check=False
    )
    assert report.exists(), done.stdout + done.stderr
    (found,) = json.loads(report.read_text())
    predicted, real = found["predicted"], found["real"]
    jobs = sum(predicted["jobs_on"].values())
    assert jobs >= 6
    assert sum(real["jobs_on"].values()) == jobs
    assert real["jobs_on"].keys() == predicted["jobs_on"].keys()
    assert 1 <= real["loads"] <= jobs
    assert 0 < real["completion_s"] <= real["makespan_s"]
    # The proxy says of each why it went there, in the words of the scheduler.
    assert sum(real["reasons"].values()) == jobs
    assert "(no reason in the log)" not in real["reasons"]
