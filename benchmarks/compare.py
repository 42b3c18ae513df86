# SPDX-License-Identifier: Apache-2.0
"""Runs the series of igdpcp and of miniupnpd, one step of each in turns, then prints the comparison.

Takes root and a quiet machine.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import awake, client, report
from benchmarks.gateways import BACKENDS, VARIANTS, Gateway, Variant
from benchmarks.series import FULL, MOST, QUICK, USUAL, Effort, Figures, Series
from tests.lab.carrier import ROOT
from tests.lab.topology import Lab

LOG_TAIL = 4000  # characters of a failed gateway's log


def main() -> None:
    arguments = _arguments()
    effort = QUICK if arguments.quick else FULL if arguments.full else USUAL
    backends = [backend for backend in BACKENDS if backend in (arguments.backend or BACKENDS)]
    facts = report.machine()
    Lab.remove_orphans()
    compileall.compile_dir(ROOT / "igdpcp", quiet=1)  # as in an installed package, whatever the environment says
    results: dict[str, list[Figures]] = {variant.key: [] for variant in VARIANTS}
    failed = False
    for turn in range(effort.rounds):
        for backend in backends:
            began = time.monotonic()
            failed |= not _side_by_side([each for each in VARIANTS if each.backend == backend], effort, results)
            print(f"{backend}, {turn + 1} of {effort.rounds}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    print("; ".join(f"{name}: {fact}" for name, fact in facts.items()) + "\n")
    print(report.table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": facts, "series": results}, indent=1) + "\n")
    sys.exit(failed)


def _side_by_side(variants: list[Variant], effort: Effort, results: dict[str, list[Figures]]) -> bool:
    """One series of each, step by step in turns; whether all came to their end."""
    complete = True
    with awake.processors(), contextlib.ExitStack() as labs:
        running: dict[str, tuple[Iterator[None], Gateway]] = {}
        for variant in variants:
            lab, gateway = labs.enter_context(variant.in_a_lab())
            series = Series(variant, lab, gateway, effort)
            results[variant.key].append(series.figures)
            running[variant.key] = series.steps(), gateway
        while running:
            for key, (steps, gateway) in list(running.items()):
                try:
                    next(steps)
                except StopIteration:
                    del running[key]
                except client.Failed as failure:
                    complete = False
                    del running[key]
                    print(f"{key} failed: {failure}\n{gateway.log()[-LOG_TAIL:]}", file=sys.stderr)
    return complete


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description="Compare igdpcp with miniupnpd, side by side.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="one series each, with fewer requests")
    length.add_argument("--full", action="store_true", help=f"one series each, with tables of {MOST} too")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every series there, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
