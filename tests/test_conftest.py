"""A need that is missing is a skip that names it, and in CI a failure."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TESTS = {
    "data": "import pytest\n@pytest.mark.data\ndef test_it(): pass\n",
    "board": "import pytest\n@pytest.mark.board\ndef test_it(): pass\n",
    "module": "import pytest\npytest.skip('no such thing', allow_module_level=True)\n",
    "xfail": "import pytest\n@pytest.mark.xfail\ndef test_it(): raise ValueError\n",
    "typo": "import pytest\n@pytest.mark.slwo\ndef test_it(): pass\n",
}


def outcome(tmp_path, name, expect_all):
    (tmp_path / "test_one.py").write_text(TESTS[name])
    env = {key: value for key, value in os.environ.items() if not key.startswith("SIGNUM_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
        + ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", str(tmp_path)],
        cwd=ROOT,
        env={**env, "SIGNUM_EXPECT_ALL": str(int(expect_all))},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("name", "expect_all", "code", "text"),
    [
        ("data", False, 0, "needs the image sets"),
        ("data", True, 1, "no skip is expected here"),
        ("board", True, 0, "needs a board"),
        ("module", True, 2, "no skip is expected here"),
        ("xfail", True, 0, "1 xfailed"),
        ("typo", False, 2, "'slwo' not found in `markers`"),
    ],
)
def test_skips(tmp_path, name, expect_all, code, text):
    got, shown = outcome(tmp_path, name, expect_all)
    assert got == code, shown
    assert text in shown
