"""Every policy by name. A new one is one file and one line here."""

from __future__ import annotations

from router.config import Config
from router.errors import ConfigError
from router.policies.base import Policy
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

TABLE: dict[str, type[Policy]] = {
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


def create(name: str, config: Config) -> Policy:
    """The policy of that name, in kebab or snake spelling. Raises ConfigError for an unknown one."""
    found = TABLE.get(name.replace("-", "_"))
    if found is None:
        raise ConfigError("policy", name, "one of " + ", ".join(TABLE))
    return found(config)
