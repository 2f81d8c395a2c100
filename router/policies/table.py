"""Every policy by name. A new policy is one file, with its options beside its formula, and one line in TABLE."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from router.errors import ConfigError
from router.options import group
from router.policies.base import NoOptions, Policy
from router.policies.cache_aware import CacheAware
from router.policies.consistent_hash import ConsistentHash
from router.policies.dynamo_kv import DynamoKv
from router.policies.lbgr.policy import Lbgr
from router.policies.lbgr_paper import LbgrPaper
from router.policies.least_loaded import LeastLoaded
from router.policies.lmetric import LMetric
from router.policies.power_of_two import PowerOfTwo
from router.policies.preble import Preble
from router.policies.random_choice import RandomChoice
from router.policies.round_robin import RoundRobin
from router.policies.smetric import SMetric

TABLE: Mapping[str, type[Policy[Any]]] = {
    each.name: each
    for each in (
        Lbgr,
        LbgrPaper,
        RandomChoice,
        RoundRobin,
        LeastLoaded,
        PowerOfTwo,
        ConsistentHash,
        CacheAware,
        LMetric,
        SMetric,
        DynamoKv,
        Preble,
    )
}

FALLBACKS = ("lmetric", "dynamo_kv", "power_of_two", "least_loaded")
"""Policies that may decide in place of one that is in trouble. They learn nothing, which a test checks, so they can be
in no trouble themselves."""

PolicyOptions: type[Any] = dataclasses.make_dataclass(
    "PolicyOptions",
    [
        (name, policy.Options, group(policy.Options, f"policy {name}", f"{name}_"))
        for name, policy in TABLE.items()
        if policy.Options is not NoOptions
    ],
    namespace={"__module__": __name__},  # so that it can be pickled for other processes
    frozen=True,
)
"""A tree with a group of options for each policy that has options, by the name of the policy."""


def create(name: str, options: Any = None) -> Policy[Any]:
    """A new policy of that name, in kebab or snake spelling. options: `PolicyOptions`; None: all at their defaults.

    Raises ConfigError for an unknown name.
    """
    found = TABLE.get(name.replace("-", "_"))
    if found is None:
        raise ConfigError("policy", name, "one of " + ", ".join(TABLE))
    return found(getattr(options, found.name, None))
