# SPDX-License-Identifier: Apache-2.0
"""files/etc/config/igdpcp is the documentation of every option: complete, with the true defaults."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

from igdpcp import config, static_sections, uci
from igdpcp.config import LanConfig, MainConfig, PermissionConfig, UpstreamConfig
from tests.packaging.makefile import ROOT

SAMPLE = ROOT / "files" / "etc" / "config" / "igdpcp"
UNCOMMENTED = re.sub(r"^#(?=(\t(option|list)|config) )", "", SAMPLE.read_text(), flags=re.MULTILINE)
PERMISSION_OPTIONS = {"ext_ports", "int_addr", "int_ports", "lan", "action", "comment"}
MAPPING_OPTIONS = {"enabled", "protocol", "ext_port", "int_addr", "int_port", "remote_host", "description"}
NO_DEFAULT = {
    "server",
    "device",
    "never_map",
    "serial_number",
    "presentation_url",
}  # the sample shows an example, and says 'Default: none'


def fields(dataclass: type) -> dict[str, object]:
    return {f.name: f.default for f in dataclasses.fields(dataclass) if f.name != "name"}


def written(section_type: str) -> dict[str, str | list[str]]:
    (section,) = (section for section in uci.parse(UNCOMMENTED) if section.type == section_type)
    return section.values


def test_the_sample_as_shipped_starts_nothing_and_equals_the_defaults() -> None:
    shipped = config.load(str(SAMPLE))
    assert shipped.warnings == ()
    assert shipped.main == MainConfig()
    assert shipped.main.enabled is False
    assert shipped.lans == (LanConfig(),)
    assert [dataclasses.replace(upstream, name="upstream") for upstream in shipped.upstreams] == [UpstreamConfig()]
    assert [dataclasses.replace(rule, name="default") for rule in shipped.permissions] == [*config.DEFAULT_PERMISSIONS]


def test_every_option_that_it_shows_is_understood() -> None:
    assert config.parse(UNCOMMENTED, "sample").warnings == ()


@pytest.mark.parametrize(
    ("section_type", "dataclass"), [("igdpcp", MainConfig), ("lan", LanConfig), ("upstream", UpstreamConfig)]
)
def test_it_shows_every_option_at_its_default(section_type: str, dataclass: type) -> None:
    defaults = {name: str(int(v) if isinstance(v, bool) else v) for name, v in fields(dataclass).items()}
    shown = written(section_type)
    assert shown.keys() == defaults.keys()
    without = NO_DEFAULT - ({"device"} if dataclass is LanConfig else set())
    for name in shown.keys() - without:
        assert shown[name] == defaults[name]


def test_it_shows_every_option_of_a_permission() -> None:
    assert written("permission").keys() == PERMISSION_OPTIONS
    assert len(PERMISSION_OPTIONS - {"comment"}) == len(fields(PermissionConfig))


def test_it_shows_every_option_of_a_static_mapping() -> None:
    assert written("mapping").keys() == MAPPING_OPTIONS == set(static_sections._READERS)
    assert len(config.parse(UNCOMMENTED, "sample").mappings) == 1


def test_every_option_is_explained_by_the_lines_above_it() -> None:
    lines = SAMPLE.read_text().split("\n")
    for above, line in itertools.pairwise(lines):
        if re.match(r"#?\t(option|list) ", line):
            assert re.match(r"\t# |#?\toption (max_mappings|enabled)", above), line
