"""In CI a test that is skipped fails: everything that it may need is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = "import pytest\n\ndef test_skipped():\n    pytest.skip('no browser')\n"
SKIPPED_WHOLE = "import pytest\n\npytest.importorskip('no_such_module')\n\ndef test_it():\n    pass\n"
EXPECTED_TO_FAIL = "import pytest\n\n@pytest.mark.xfail(strict=True)\ndef test_it():\n    assert False\n"


@pytest.mark.parametrize("value", ["1", ""])
@pytest.mark.parametrize(("code", "fails"), [(SKIPPED, True), (SKIPPED_WHOLE, True), (EXPECTED_TO_FAIL, False)])
def test_skips_fail_where_they_are_forbidden(code: str, fails: bool, value: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(code)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)),
        cwd=tmp_path,
        env=os.environ | {"NO_SKIPPED_TESTS": value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    did_fail = done.returncode not in (0, 5)  # 5: nothing to run, because the whole module is skipped
    assert did_fail == (fails and value == "1"), done.stdout
    assert did_fail == ("and NO_SKIPPED_TESTS is set" in done.stdout)
