"""Every option of the gateway (`Config`) and of `leafcutter up` (`UpConfig`), as one frozen tree of groups.

An option has the same flat name everywhere: `request_timeout_secs` in YAML, LEAFCUTTER_REQUEST_TIMEOUT_SECS in the
environment, and the flag `--request-timeout-secs`. Where other routers have the same option, its name and default are
those that users know from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from router.core.options import RoutingOptions
from router.options import build, group, option
from router.policies.table import PolicyOptions

HARDWARE = ("auto", "cpu", "cuda")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")


@dataclass(frozen=True)
class ServerOptions:
    """The endpoint that clients see."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(30000, "port to listen on", unit="TCP port", low=0, high=65535)
    processes: int | str = option(
        1,
        "processes that serve clients; with more than one, one more decides for all; auto: one a core, at most 8",
        low=1,
        high=64,
        words=("auto",),
    )
    log_level: str = option("info", "least severe message that is logged", among=LOG_LEVELS)
    log_format: str = option("text", "form of the log's lines", among=LOG_FORMATS)
    access_log: bool = option(True, "log a line for every request that is for an engine, when it is over")
    api_key: str | None = option(
        None,
        "key that all clients share; without admin_key and client_keys it opens operators' routes too",
        secret=True,
    )
    admin_key: str | None = option(None, "key that opens operators' routes and all others", secret=True)
    client_keys: str | None = option(
        None, "YAML file of clients' keys (leafcutter keys new), looked at for changes; or the list itself, as [...]"
    )
    admin_port: int | None = option(
        None, "port that alone serves operators' routes; nothing: `port` does", unit="TCP port", low=0, high=65535
    )
    admin_host: str = option("127.0.0.1", "address that admin_port is on")
    allow_no_key: bool = option(False, "listen beyond loopback though no key is set: whoever comes is admin")
    tls_cert: str | None = option(
        None, "PEM file of the certificate (chain) to serve https with; it and those below are looked at for changes"
    )
    tls_key: str | None = option(None, "PEM file of its private key; nothing: it is in tls_cert")
    tls_client_ca: str | None = option(
        None, "PEM file of the authorities, one of which must have signed a client's certificate; nothing: none asked"
    )
    allow_paths: tuple[str, ...] = option(
        (),
        "more paths of the engines that clients may ask for, e.g. /v1/responses/{response_id}; those that manage "
        "engines stay closed",
    )
    max_payload_size: int = option(67_108_864, "largest request body", unit="bytes", low=1)
    max_connections: int = option(
        8192,
        "client connections at a time; with more, the one that has waited longest for its client is closed",
        low=1,
    )
    max_concurrent_requests: int = option(4096, "requests to engines that run at a time; further ones wait", low=1)
    queue_size: int = option(100, "requests that may wait for their turn; further ones are refused", low=0)
    queue_timeout_secs: float = option(
        60.0,
        "longest wait for a turn; a request is refused at once if a longer wait is predicted",
        unit="seconds",
        low=0,
    )
    request_id_headers: tuple[str, ...] = option(
        ("x-request-id", "x-correlation-id", "x-trace-id", "request-id"),
        "headers that may carry the client's request id, first found wins",
    )
    keep_alive_timeout_secs: float = option(
        75.0,
        "how long an idle client connection stays open; more than the client's own limit (5 s in the OpenAI client), "
        "or both may close it at once and lose a request",
        unit="seconds",
        low=1,
    )
    shutdown_pause_secs: float = option(
        5.0,
        "how long, after SIGTERM, requests are served as before while /readiness says 503, so that load balancers "
        "notice; Ctrl-C: not at all",
        unit="seconds",
        low=0,
    )
    shutdown_grace_period_secs: float = option(
        30.0, "how long running requests may take to finish at shutdown", unit="seconds", low=0
    )


@dataclass(frozen=True)
class EngineOptions:
    """The engines, and how their health is checked."""

    worker_urls: tuple[str, ...] = option((), "base URLs of the engines, e.g. http://127.0.0.1:8000")
    worker_api_key: str | None = option(
        None,
        "key sent to the engines in place of the client's; nothing: the client's passes if the gateway has no keys",
        secret=True,
    )
    hint_key: str | None = option(
        None,
        "key of the engines' hints about sessions (their LEAFCUTTER_HINT_KEY); nothing: none are sent",
        secret=True,
    )
    model_alias: tuple[str, ...] = option(
        (), "more names for models, each as ALIAS=MODEL, e.g. gpt-4o=Qwen/Qwen3-8B; engines get the name of the model"
    )
    worker_ca: str | None = option(
        None, "PEM file of the authorities that sign https engines' certificates; nothing: the system's"
    )
    worker_cert: str | None = option(None, "PEM file of the certificate that the gateway shows to https engines")
    worker_key: str | None = option(None, "PEM file of its private key; nothing: it is in worker_cert")
    state_port_offset: int = option(
        1000,
        "where an engine's eviction state is read: its port plus this many (LEAFCUTTER_STATE_PORT in the engine)",
        low=-65535,
        high=65535,
    )
    health_check_interval_secs: float = option(5.0, "time between two checks of an engine", unit="seconds", low=0.05)
    health_check_timeout_secs: float = option(5.0, "time an engine has to answer a check", unit="seconds", low=0.05)
    health_failure_threshold: int = option(3, "failed checks in a row that take an engine out", low=1)
    health_success_threshold: int = option(1, "passed checks in a row that bring it back", low=1)


@dataclass(frozen=True)
class ReliabilityOptions:
    """How long a request may take, and when another engine is tried."""

    connect_timeout_secs: float = option(5.0, "time to connect to an engine", unit="seconds", low=0.01)
    first_byte_timeout_secs: float = option(
        900.0,
        "time to the engine's first byte: queue, prefill and, unstreamed, all decoding",
        unit="seconds",
        low=0.01,
    )
    idle_timeout_secs: float = option(300.0, "longest silence inside an answer", unit="seconds", low=0.01)
    request_timeout_secs: float = option(1800.0, "longest whole request", unit="seconds", low=0.01)
    retry_max_retries: int = option(
        8,
        "other engines tried if one cannot be reached, declines or fails before its first byte",
        low=0,
        high=100,
    )


@dataclass(frozen=True)
class RecordingOptions:
    """What is written to files: the traffic as a trace, and what was learned."""

    record: str | None = option(
        None, "file that gets a line for every request, no text, for simulate --trace; .gz: compressed"
    )
    usage_log: str | None = option(
        None, "file that gets a line for every request, with key and tokens, for billing; turned over as the recording"
    )
    record_max_bytes: int = option(
        268_435_456, "size at which such a file becomes FILE.1 and a new one begins", unit="bytes", low=4096
    )
    record_files: int = option(8, "older files kept, FILE.1 the newest; beyond, the oldest is deleted", low=1, high=999)
    snapshot: str | None = option(
        None, "file that keeps what was learned across restarts; one that does not fit is refused, with a warning"
    )
    snapshot_interval_secs: float = option(
        60.0, "time between two saves of it; the last is at shutdown", unit="seconds", low=0.1
    )


@dataclass(frozen=True)
class Config:
    """All options of the gateway."""

    server: ServerOptions = group(ServerOptions, "server")
    engines: EngineOptions = group(EngineOptions, "engines")
    reliability: ReliabilityOptions = group(ReliabilityOptions, "reliability")
    routing: RoutingOptions = group(RoutingOptions, "routing")
    recording: RecordingOptions = group(RecordingOptions, "recording")
    policies: Any = group(PolicyOptions, "policies")


@dataclass(frozen=True)
class UpOptions:
    """The engines that `leafcutter up` starts."""

    hardware: str = option("auto", "what engines run on; auto: GPUs where nvidia-smi lists any", among=HARDWARE)
    engines: int = option(0, "engines to start; 0: one per GPU, or two where there is no GPU", low=0, high=64)
    model: str | None = option(
        None, "model to serve: a hub name or a folder; nothing: a small default that suits the hardware"
    )
    eviction: str = option("rlt_gix", "order in which the engines' prefix caches forget; off: the engine's own")
    eviction_seed: int | None = option(None, "seed of a randomized order; nothing: from the system", low=0)
    engine_port: int = option(8100, "port of the first engine; the next ones follow", low=1, high=65535)
    num_gpu_blocks: int | None = option(
        None, "prefix-cache blocks of each engine; nothing: all that fit in memory", unit="blocks", low=8
    )
    block_size: int | None = option(None, "tokens in a prefix-cache block; nothing: the engine's default", low=1)
    max_model_len: int | None = option(None, "longest context; nothing: the model's", unit="tokens", low=1)
    kv_cache_gib: int = option(1, "memory of each CPU engine's cache", unit="GiB", low=1)
    engine_args: tuple[str, ...] = option((), "more arguments for every engine, e.g. '--enable-lora'")
    engine_startup_timeout_secs: float = option(
        1200.0, "time an engine has to become ready, downloads included", unit="seconds", low=1
    )
    restart_engines: bool = option(True, "start an engine again when it dies")
    log_dir: str = option("logs", "folder of the engines' logs")


@dataclass(frozen=True)
class UpConfig(Config):
    """All options of `leafcutter up`: those of the gateway, and those of the engines that it starts."""

    up: UpOptions = group(UpOptions, "engines to start")


def configure(**values: Any) -> Config:
    """The options of a gateway from values by flat names; those for studies may be set too. Raises ConfigError for what
    `options.build` refuses."""
    return build(Config, flags=values, study=True)


def configure_up(**values: Any) -> UpConfig:
    """The options of `leafcutter up`, otherwise as `configure`."""
    return build(UpConfig, flags=values, study=True)
