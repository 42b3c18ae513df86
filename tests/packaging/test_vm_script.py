# SPDX-License-Identifier: Apache-2.0
"""ci/vm up to the edge of the machine: the image is unpacked, left alone, and QEMU gets the right cards."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

import pytest

from tests.packaging.makefile import ROOT

SCRIPT = ROOT / "ci" / "vm"


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ci/vm with a QEMU that notes its arguments, and the content of its disk."""
    qemu = directory / "qemu-system-x86_64"
    qemu.write_text(
        "#!/bin/bash\n"
        "for argument; do\n"
        '  echo "$argument"\n'
        '  if [[ $argument == file=* ]]; then image=${argument#file=}; cp "${image%%,*}" "${0%/*}/disk"; fi\n'
        "done\n"
    )
    qemu.chmod(0o755)
    environment = {"PATH": f"{directory}:{os.environ['PATH']}", "IGDPCP_VM_PORT": "2299"}
    return subprocess.run([str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=20)


def test_an_image_with_appended_metadata_boots_from_a_copy(tmp_path: Path) -> None:
    image = tmp_path / "openwrt.img.gz"
    packed = gzip.compress(b"disk") + b"appended metadata"
    image.write_bytes(packed)
    done = run(tmp_path, str(image))
    assert done.returncode == 0
    assert (tmp_path / "disk").read_bytes() == b"disk"
    assert image.read_bytes() == packed
    cards = [line.partition(",")[2] for line in done.stdout.splitlines() if line.startswith("virtio-net-pci")]
    assert cards == ["netdev=lan", "netdev=wan"]
    assert "hostfwd=tcp:127.0.0.1:2299-192.168.1.1:22" in done.stdout


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("--help",), 2), (("a", "b"), 2), (("/nothing",), 1)])
def test_wrong_usage_and_a_missing_image_are_said(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == code
    assert "usage: ci/vm IMAGE" in done.stderr or "cannot read the image /nothing" in done.stderr
