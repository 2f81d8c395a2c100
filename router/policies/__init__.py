"""Every policy by name. A new one is one file and one line here."""

from __future__ import annotations

from router.config import Config
from router.errors import ConfigError
from router.policies.base import Policy
from router.policies.lbgr import Lbgr
from router.policies.least_loaded import LeastLoaded
from router.policies.round_robin import RoundRobin

TABLE: dict[str, type[Policy]] = {each.name: each for each in (Lbgr, RoundRobin, LeastLoaded)}


def create(name: str, config: Config) -> Policy:
    """The policy of that name, in kebab or snake spelling. Raises ConfigError for an unknown one."""
    found = TABLE.get(name.replace("-", "_"))
    if found is None:
        raise ConfigError("policy", name, "one of " + ", ".join(TABLE))
    return found(config)
