# SPDX-License-Identifier: Apache-2.0
"""A sample of wrong versions of the hall and of the PCP client: the tests notice each, or it is known why not.

The sample is the same each time, one or two of each module: ``MUTATION_SEED`` draws another one, ``MUTATION_SAMPLE``
and ``MUTATION_SECONDS`` allow for more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mutation import mutator

ROOT = Path(__file__).parents[2]
SURVIVORS = Path(__file__).with_name("survivors.txt")
SUITES = {
    "iwf": (
        "tests/iwf",
        "tests/unit/test_journal.py",
        "tests/unit/test_timers.py",
        "tests/property/test_table.py",
        "tests/property/test_fair_share.py",
        "tests/property/test_pinhole_table.py",
    ),
    "pcp": ("tests/pcp", "tests/property/test_pcp_any_bytes.py", "tests/upstreams"),
}
LONG = {
    "test_fair_share.py", "test_many_at_once.py", "test_pcp_any_bytes.py", "test_pcp_scale.py", "test_pinhole_table.py",
    "test_restarts.py", "test_table.py", "test_thirty_days.py", "test_two_engines.py",
}  # of seconds, more than all the others together: what notices a mutant is seldom one of these alone  # fmt: skip
SEED = os.environ.get("MUTATION_SEED", "7")
SAMPLE = int(os.environ.get("MUTATION_SAMPLE", "60"))
SECONDS = float(os.environ.get("MUTATION_SECONDS", "400"))  # no further mutant is begun after that
WORKERS = 2
LONGEST = 180.0  # seconds; a mutant that never ends has been noticed


def known_survivors() -> set[str]:
    """Lines that begin with the module; what is indented below one says why no test needs to notice it."""
    lines = SURVIVORS.read_text().splitlines()
    return {line for line in lines if line and not line.startswith((" ", "#"))}


def every_mutant() -> list[tuple[str, str]]:
    """Module and name of each."""
    modules = [path for part in SUITES for path in sorted((ROOT / "igdpcp" / part).glob("*.py"))]
    return [(str(path.relative_to(ROOT)), name) for path in modules for name in mutator.names(path.read_text())]


def drawn() -> list[tuple[str, str]]:
    """All of them, in the order in which they are tried: evenly over the modules."""
    turns: Counter[str] = Counter()
    order = []
    for module, name in sorted(every_mutant(), key=_lot):
        order.append((turns[module], module, name))
        turns[module] += 1
    return [(module, name) for _, module, name in sorted(order, key=lambda each: (each[0], _lot(each[1:])))]


def _lot(mutant: tuple[str, str]) -> str:
    """A number drawn for it, the same whatever else there is."""
    return hashlib.sha256(" ".join((SEED, *mutant)).encode()).hexdigest()


class Workshop:
    """A copy of the tree in which one module at a time is wrong."""

    def __init__(self, directory: Path) -> None:
        self._tree = directory
        for part in ("igdpcp", "tests", "files", "pyproject.toml"):
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, directory / part)

    def suite(self, module: str) -> list[str]:
        """The files that may notice: the short ones first, and of them those that speak of the module most."""
        wanted = [self._tree / part for part in SUITES[module.split("/")[1]]]
        files = [file for part in wanted for file in ([part] if part.suffix else part.glob("test_*.py"))]
        word = Path(module).stem
        order = {file: (file.name in LONG, -_share(word, file.read_text()), file.name) for file in files}
        return [str(file) for file in sorted(files, key=order.__getitem__)]

    def notices(self, module: str, name: str) -> bool:
        path = self._tree / module
        right = path.read_text()
        path.write_text(mutator.mutated(right, name))
        marks = ["-m", "not lab and not slow", "-x", "-q", "-p", "no:cacheprovider"]
        argv = [sys.executable, "-B", "-m", "pytest", *marks, *self.suite(module)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            return subprocess.run(argv, cwd=self._tree, timeout=LONGEST, check=False, **quiet).returncode != 0  # type: ignore[call-overload]
        except subprocess.TimeoutExpired:
            return True
        finally:
            path.write_text(right)


def _share(word: str, text: str) -> float:
    return text.count(word) / len(text)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 3 * LONGEST)
def test_each_wrong_version_of_a_sample_is_noticed_or_explained(tmp_path: Path) -> None:
    known = known_survivors()
    sample = [mutant for mutant in drawn() if " ".join(mutant) not in known][:SAMPLE]
    ends = time.monotonic() + SECONDS
    survivors: list[str] = []
    tried: list[str] = []

    def work(number: int) -> None:
        workshop = Workshop(tmp_path / str(number))
        while sample and time.monotonic() < ends:
            module, name = sample.pop(0)
            tried.append(name)
            if not workshop.notices(module, name):
                survivors.append(f"{module} {name}")

    for number in range(WORKERS):
        (tmp_path / str(number)).mkdir()
    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(work, range(WORKERS)))
    outcome = f"{len(tried)} of {len(tried) + len(sample)} mutants tried, {len(survivors)} survived (seed {SEED})"
    print(outcome)
    assert tried
    assert not survivors, "\n".join((outcome, *sorted(survivors)))


def test_the_survivors_that_are_explained_are_mutants_of_the_code_as_it_is() -> None:
    assert known_survivors() <= {f"{module} {name}" for module, name in every_mutant()}


def test_a_mutant_differs_in_one_place() -> None:
    source = "def f(a):\n    if a < 1 and a:\n        g()\n"
    assert [mutant.name for mutant in mutator.mutants(source)] == [
        "f: 1 -> 2", "f: a < 1 -> a <= 1", "f: a < 1 and a -> a < 1 or a", "f: g() -> pass",
    ]  # fmt: skip
    assert "a <= 1" in mutator.mutated(source, "f: a < 1 -> a <= 1")


def test_what_is_only_declared_has_no_mutants() -> None:
    assert mutator.names('class C(Interface):\n    def f(self, a=True):\n        """Do it."""\n') == []
    assert mutator.names("def f(a=True): ...") == []
