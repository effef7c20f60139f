"""Hosts whose weights are shared out over the processes: loaded in parts, the same numbers, adapters upon them."""

from __future__ import annotations

import pytest

from tests.families import tiny_host
from tests.hosts.sharded_checks import TYPES, checks
from tests.several_processes import HELD, outcomes


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    for name in TYPES:
        tiny_host(name).save_pretrained(folder / name, max_shard_size="20KB")
    return folder


@pytest.fixture(scope="module")
def two(hosts):
    return outcomes("tests.hosts.sharded_checks", 2, hosts)


@pytest.mark.parametrize("check", [*checks(None), "the end"])
def test_two_processes_share_a_host(check, two):
    assert two[check] == HELD, two[check]
