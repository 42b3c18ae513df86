# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed at every boundary of what it writes, with and without what tmpfs holds; then it starts again.

The carrier has a quota of 32 mappings and checks nonces: what nobody knows of any more would be missed there.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.altered import altered
from tests.lab.carrier import SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import LabError, poll
from tests.lab.rules import rules_for
from tests.lab.topology import LAN_ADDRESS, Lab
from tests.support.mortal_files import NEVER, taken
from tests.support.soap_client import SoapClient

pytestmark = pytest.mark.lab

PORTS = range(8080, 8083)
FIRST, SECOND, THIRD = PORTS
QUOTA = 32
FULL = range(9000, 9000 + QUOTA)
ON_THEIR_WAY = 2
PATIENCE = 10.0
NOT_AUTHORIZED = "result_2"  # RFC 6887 section 7.4


class Router:
    """One life of a router from its first start on; ``last``: the step of its writing that kills the daemon."""

    def __init__(self, lab: Lab, carrier: SimulatedCarrier, last: int) -> None:
        self.lab = lab
        self.carrier = carrier
        self.record = lab.directory / "steps"
        for name in ("run", "state"):
            shutil.rmtree(lab.directory / name, ignore_errors=True)
        directories = [str(lab.directory / name) for name in ("run", "state")]
        self.env = altered(
            lab,
            f"from tests.support import mortal_files\nmortal_files.install({directories}, {last}, '{self.record}')\n",
        )
        self.daemon = self._daemon(self.env)
        self.client: SoapClient = soap_client(lab.lan)
        self.asked: set[int] = set()
        self.promised: set[int] = set()
        self.on_flash: set[int] = set()

    def _daemon(self, env: dict[str, str] | None = None) -> Igdpcpd:
        return Igdpcpd(self.lab, main={"external_ip_probe": "0"}, env=env, start=False)

    def live(self) -> None:
        """Open, reload, close, open, stop: until the daemon dies of it."""
        self.daemon.launch()
        with contextlib.suppress(LabError, OSError, ValueError):
            self.daemon.wait_until_ready()
            self.daemon.wait_for_activation()
            self.add(FIRST)
            self.add(SECOND)
            self.daemon.reload()
            poll(lambda: self.is_reloaded or not self.is_alive, PATIENCE, "the reload")
            if self.is_reloaded:
                self.on_flash = set(self.promised)
            self.delete(FIRST)
            self.add(THIRD)
            self.daemon.stop()
        assert self.daemon.process
        poll(lambda: not self.is_alive, PATIENCE, "the daemon's end")

    @property
    def is_alive(self) -> bool:
        return self.daemon.process is not None and self.daemon.process.alive

    @property
    def is_reloaded(self) -> bool:
        return len(self.daemon.events("ready")) == 2

    def add(self, port: int) -> None:
        self.asked.add(port)
        if self.client.add("tcp", port, LAN_ADDRESS, port):
            self.promised.add(port)

    def delete(self, port: int) -> None:
        for ports in (self.asked, self.promised, self.on_flash):
            ports.discard(port)
        assert self.client.delete("tcp", port)

    def start_again(self) -> None:
        self.daemon = self._daemon()
        self.daemon.start()
        self.daemon.wait_for_activation()

    @property
    def listed(self) -> set[int]:
        return {row["external_port"] for row in self.daemon.mappings()}

    @property
    def granted(self) -> set[int]:
        return {mapping.external_port for mapping in self.carrier.table()}

    def wait_for_agreement(self) -> None:
        """Nothing is held at the carrier that is not listed here, and the other way round."""
        poll(lambda: self.granted == self.listed, PATIENCE, f"agreement with the carrier:\n{self.daemon.log()}")
        for port in PORTS:
            poll(
                lambda port=port: bool(rules_for(self.lab, LAN_ADDRESS, port)) is (port in self.listed),  # type: ignore[misc]
                PATIENCE,
                f"the rules for {port}",
            )

    def nobody_was_locked_out(self) -> bool:
        return NOT_AUTHORIZED not in self.carrier.counters()


def lives(lab: Lab, every: int, check: Callable[[Router], None]) -> None:
    """Check what the next start makes of each death: at every boundary, or at ``every`` so manieth one."""
    whole = life(lab, NEVER, lambda router: None)
    steps = taken(whole.record)
    assert {"within write journal", "after fsync mappings.new", "after replace secret.new"} <= set(steps)
    assert steps.count("after replace mappings.new") == 2  # at the reload and at the stop, not for each mapping
    for last in range(1, len(steps) + 1, every):
        try:
            life(lab, last, check)
        except Exception as error:
            raise AssertionError(f"killed at step {last} of {len(steps)}: {steps[last - 1]}") from error


def life(lab: Lab, last: int, check: Callable[[Router], None]) -> Router:
    carrier = SimulatedCarrier(lab, "quota_32")
    router = Router(lab, carrier, last)
    try:
        router.live()
        check(router)
        return router
    finally:
        if router.is_alive:
            router.daemon.kill()
        carrier.stop()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def after_a_kill(router: Router) -> None:
    """Everything promised is there as it was, and no slot of the carrier is lost."""
    router.start_again()
    router.wait_for_agreement()
    assert router.promised <= router.listed <= router.asked | {FIRST}
    assert router.nobody_was_locked_out()


def after_a_power_cut(router: Router) -> None:
    """What was on flash is there; what was not is the carrier's alone until it is asked for again."""
    shutil.rmtree(router.daemon.run_dir)
    held = router.granted
    router.start_again()
    assert router.on_flash <= router.listed
    poll(lambda: router.listed <= router.granted, PATIENCE, f"being asked for again:\n{router.daemon.log()}")
    assert router.granted - router.listed <= held
    for port in PORTS:
        router.add(port)
    assert router.promised == set(PORTS)
    router.wait_for_agreement()
    assert router.listed == set(PORTS)
    assert router.nobody_was_locked_out()
    assert not Path(router.daemon.state_dir / "mappings.damaged").exists()


CHECKS = pytest.mark.parametrize("check", [after_a_kill, after_a_power_cut])


@pytest.mark.timeout(300)
@CHECKS
def test_iwf_042_044_a_death_at_some_writes_loses_no_promise_and_no_slot(
    lab: Lab, check: Callable[[Router], None]
) -> None:
    lives(lab, 11, check)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@CHECKS
def test_iwf_042_044_a_death_at_any_write_loses_no_promise_and_no_slot(
    lab: Lab, check: Callable[[Router], None]
) -> None:
    lives(lab, 1, check)


@contextlib.contextmanager
def crowded(lab: Lab) -> Iterator[Router]:
    """The daemon dies when the carrier has granted all that it grants, and has said so of all but the last ones."""
    carrier = SimulatedCarrier(lab, "quota_32")
    router = Router(lab, carrier, NEVER)
    router.daemon.start()
    router.daemon.wait_for_activation()
    for port in FULL[:-ON_THEIR_WAY]:
        router.add(port)
    assert router.promised == set(FULL[:-ON_THEIR_WAY])
    carrier.switch(delay=60_000)
    for port in FULL[-ON_THEIR_WAY:]:
        assert router.client.add("tcp", port, LAN_ADDRESS, port).code == 501
    assert router.granted == set(FULL)
    router.daemon.kill()
    carrier.switch(delay=0)
    yield router
    assert router.nobody_was_locked_out()


def test_iwf_042_after_a_kill_every_slot_of_a_quota_is_in_use_or_free(lab: Lab) -> None:
    with crowded(lab) as router:
        router.start_again()
        poll(lambda: router.granted == router.promised, PATIENCE, f"what was on its way:\n{router.daemon.log()}")
        assert router.listed == router.promised
        for port in PORTS[:ON_THEIR_WAY]:
            router.add(port)
        assert len(router.promised) == QUOTA
        assert router.client.add("tcp", THIRD, LAN_ADDRESS, THIRD).code == 501
        assert router.granted == router.listed == router.promised


def test_iwf_042_after_a_power_cut_every_slot_of_a_quota_is_adopted_by_who_asks_again(lab: Lab) -> None:
    with crowded(lab) as router:
        assert not (router.daemon.state_dir / "mappings").exists()
        shutil.rmtree(router.daemon.run_dir)
        router.start_again()
        assert router.listed == set()
        for port in reversed(FULL):
            router.add(port)
        assert router.granted == router.listed == router.promised == set(FULL)
