# SPDX-License-Identifier: Apache-2.0
"""ci/requirements: every requirement has a test that is named after it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "ci" / "requirements"
SILENCE, SUCCESS = "- IWF-001: Silence is kept.\n", "- IWF-002: Success is told,\n  and stored.\n"


def complaints(directory: Path, requirements: str, *tests: str) -> tuple[int, list[str]]:
    (directory / "docs").mkdir(parents=True)
    (directory / "docs" / "requirements.md").write_text(f"# Requirements\n\n{requirements}")
    (directory / "tests" / "part").mkdir(parents=True)
    functions = "".join(f"def {name}() -> None: ...\n\n\n" for name in tests)
    (directory / "tests" / "part" / "test_some.py").write_text(functions)
    ran = subprocess.run([SCRIPT, directory], capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout.splitlines()


def test_a_requirement_without_a_test_fails_and_is_named(tmp_path: Path) -> None:
    status, lines = complaints(tmp_path, SILENCE + SUCCESS, "test_iwf_001_silence", "test_002_success")
    assert (status, lines) == (1, ["ci/requirements: IWF-002 has no test_iwf_NNN_..."])


@pytest.mark.parametrize("tests", [("test_iwf_001_002_both",), ("test_iwf_001_one", "test_iwf_002_one")])
def test_one_test_may_prove_several_requirements(tmp_path: Path, tests: tuple[str, ...]) -> None:
    assert complaints(tmp_path, SILENCE + SUCCESS, *tests)[0] == 0


@pytest.mark.parametrize(
    ("requirements", "test", "complaint"),
    [
        (SILENCE, "test_iwf_001_003_more", "IWF-003 is in the name of a test but not in docs/requirements.md"),
        (SILENCE + SILENCE, "test_iwf_001_silence", "IWF-001 stands twice in docs/requirements.md"),
    ],
)
def test_list_and_names_agree(tmp_path: Path, requirements: str, test: str, complaint: str) -> None:
    status, lines = complaints(tmp_path, requirements, test)
    assert (status, lines) == (1, [f"ci/requirements: {complaint}"])
