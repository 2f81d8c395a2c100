"""Which paths go to engines: those of `apis.TABLE`, and those that the operator has opened.

All others are closed. What the operator opens is passed with any of METHODS, and it cannot be a path by which engines
are managed: who may do that asks the engines themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from router.errors import ConfigError
from router.gateway.apis import TABLE

METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE"))
# The first parts (after `v1`) of paths that manage an engine or tell of its inside, in vLLM 0.26 to 0.33 and SGLang.
_MANAGEMENT = """
    abort_requests collective_rpc configure_logging docs fault_tolerance finish_weight_update flush_cache
    get_server_info get_world_size init_weight_transfer_engine is_paused is_scaling_elastic_ep is_sleeping
    kv_event_sources load load_lora_adapter metrics openapi.json pause realtime redoc release_kv_cache_memory
    release_memory_occupation reset_encoder_cache reset_mm_cache reset_prefix_cache resume resume_memory_occupation
    scale_elastic_ep server_info shutdown_weight_transfer_engine sleep start_draft_weight_update start_profile
    start_weight_update stop_profile unload_lora_adapter update_weight_version update_weights wake_up weight_checker
    weight_info
"""
MANAGEMENT = frozenset(_MANAGEMENT.split())
OWN = frozenset(("decisions", "explain", "health", "liveness", "models", "policy", "readiness", "workers"))
_TEMPLATE = re.compile(r"(/([A-Za-z0-9._~-]+|\{[a-z_]+\}))+")
_SEGMENT = re.compile(rb"(?!\.{1,2}$)[A-Za-z0-9._~:@-]+")


class OpenedPaths:
    """The paths that the operator has opened. templates: their parts in braces stand for one part of a path, as in
    `/v1/responses/{response_id}`. Raises ConfigError."""

    def __init__(self, templates: Sequence[str]) -> None:
        self._templates = [(template, _parts(template)) for template in templates]

    def find(self, method: str, raw_path: bytes) -> str | None:
        """The template of a path as it was sent; None: it is closed.

        A part that is percent-encoded matches nothing, so that the engine cannot take the path for another one.
        """
        if not self._templates or method not in METHODS:
            return None
        parts = raw_path.split(b"/")[1:]
        for template, wanted in self._templates:
            if len(parts) == len(wanted) and all(map(_matches, parts, wanted)):
                return template
        return None


def _matches(part: bytes, wanted: bytes) -> bool:
    return part == wanted if wanted[:1] != b"{" else _SEGMENT.fullmatch(part) is not None


def _parts(template: str) -> list[bytes]:
    """Raises ConfigError."""
    names = template.split("/")[1:]
    if not _TEMPLATE.fullmatch(template) or {".", ".."} & set(names):
        raise ConfigError("allow_paths", template, "a path such as /v1/responses/{response_id}")
    if template in TABLE:
        raise ConfigError("allow_paths", template, "a path that is not open already")
    first = names[1] if re.fullmatch(r"v\d+", names[0]) and len(names) > 1 else names[0]
    if first in OWN or first.startswith("{"):
        raise ConfigError("allow_paths", template, "a path that the gateway does not answer itself")
    if first in MANAGEMENT:
        raise ConfigError("allow_paths", template, "a path that does not manage engines; those are asked directly")
    return [name.encode() for name in names]


def read_aliases(pairs: Sequence[str]) -> dict[str, str]:
    """The names of models by their aliases, from texts such as `gpt-4o=Qwen/Qwen3-8B`. Raises ConfigError."""
    aliases: dict[str, str] = {}
    for pair in pairs:
        alias, equals, model = pair.partition("=")
        if not (alias and equals and model):
            raise ConfigError("model_alias", pair, "ALIAS=MODEL")
        if alias in aliases:
            raise ConfigError("model_alias", pair, "every alias once")
        aliases[alias] = model
    for alias, model in aliases.items():
        if model in aliases:
            raise ConfigError("model_alias", f"{alias}={model}", "the name of a model, not another alias")
    return aliases
