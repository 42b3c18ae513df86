# SPDX-License-Identifier: Apache-2.0
"""Facts compared with the elements that the kernel holds, both as the bytes that nf_tables matches packets with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from igdpcp.netfilter.desired import Fact, Key
from igdpcp.netfilter.nftables_elements import element_data, element_key
from igdpcp.netfilter.nftables_reader import Element
from igdpcp.openings import Discrepancy

SLACK_SECONDS = 5.0  # by which an element may end earlier or later than its fact: timeouts are whole seconds


def compare(elements: Iterable[Element], facts: Mapping[Key, Fact], now: float) -> Discrepancy:
    """How the elements of one set or map differ from its facts. What is about to end is left out of account.

    An element that ends a lot before its fact counts as missing, one that outlives it as nobody's.
    """
    wanted = {element_key(key): fact for key, fact in facts.items()}
    seen: set[bytes] = set()
    missing = surplus = 0
    for element in elements:
        if element.key in seen:
            continue
        seen.add(element.key)
        fact = wanted.pop(element.key, None)
        left = fact.ends - now if fact else 0.0
        if fact and (element.data != element_data(fact.value) or element.left < left - SLACK_SECONDS):
            missing += 1
        elif element.left > left + SLACK_SECONDS:
            surplus += 1
    missing += sum(fact.ends > now + SLACK_SECONDS for fact in wanted.values())
    return Discrepancy(missing, surplus)


def leads(element: Element | None, fact: Fact) -> bool:
    """Whether the element is there and does what the fact says."""
    return element is not None and element.data == element_data(fact.value)
