"""What concerns all tests."""

import os
from collections.abc import Generator

import hypothesis
import pytest

# How long an example takes says nothing on a machine that does other things, too.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# Not COMFYPROXY_...: whatever begins like this is a setting, and the commands that the tests run would refuse it.
NO_SKIPPED_TESTS = bool(os.environ.get("NO_SKIPPED_TESTS"))


def fail_if_skipped(report: pytest.CollectReport | pytest.TestReport) -> None:
    """Turn a skip into a failure where everything that a test may need is there."""
    if NO_SKIPPED_TESTS and report.skipped and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{why}, and NO_SKIPPED_TESTS is set"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_if_skipped(report)
    return report
