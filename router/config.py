"""Every option of the gateway (`Config`) and of `leafcutter up` (`UpConfig`), each in one place.

The same name everywhere: `request_timeout_secs` in YAML, LEAFCUTTER_REQUEST_TIMEOUT_SECS in the environment,
`--request-timeout-secs` as a flag. Names and defaults are the ones users know from other routers where they have them.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.options import option

OBJECTIVES = ("e2e", "ttft", "slo")
POLICIES = (  # held equal to policies.TABLE by a test
    "lbgr",
    "lbgr_paper",
    "random",
    "round_robin",
    "least_loaded",
    "power_of_two",
    "consistent_hash",
    "cache_aware",
    "lmetric",
    "smetric",
    "dynamo_kv",
    "preble",
)
FALLBACKS = ("lmetric", "dynamo_kv", "power_of_two", "least_loaded")  # that learn nothing, held to it by a test
HARDWARE = ("auto", "cpu", "cuda")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Config:
    """Options of the gateway."""

    # Endpoint
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(30000, "port to listen on", unit="TCP port", low=0, high=65535)
    log_level: str = option("info", "least severe message that is logged", among=LOG_LEVELS)
    api_key: str | None = option(
        None, "key that every path but those for health and metrics wants as a bearer token; nothing: no check"
    )
    max_payload_size: int = option(536_870_912, "largest request body", unit="bytes", low=1)
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
    shutdown_grace_period_secs: float = option(
        30.0, "how long running requests may take to finish at shutdown", unit="seconds", low=0
    )

    # Engines
    worker_urls: tuple[str, ...] = option((), "base URLs of the engines, e.g. http://127.0.0.1:8000")
    worker_api_key: str | None = option(
        None, "key sent to the engines in place of the client's; nothing: the client's passes, unless it is api_key"
    )
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

    # Forwarding
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
        3,
        "other engines tried if one cannot be reached or answers 503 before its first byte",
        low=0,
        high=100,
    )

    # Routing
    policy: str = option("lbgr", "how an engine is chosen", among=POLICIES)
    fallback_policy: str = option(
        "lmetric",
        "which chooses while the policy must not be heeded: it failed, is cold or predicts badly",
        among=FALLBACKS,
    )
    shadow: tuple[str, ...] = option(
        (), "policies that score every request beside the one that decides, and are only counted", among=POLICIES
    )
    seed: int | None = option(None, "seed of the tie-break; nothing: drawn anew at each start", low=0)
    prefix_block_tokens: int = option(
        64,
        "block of the router's prefix index; text counts 4 bytes a token",
        unit="tokens",
        low=1,
        high=65536,
    )
    prefix_index_blocks: int = option(
        500_000, "most blocks the prefix index keeps, all engines together (up to about 300 bytes each)", low=1
    )
    default_capacity_tokens: int = option(
        100_000, "prefix cache assumed of an engine that does not tell its size", unit="tokens", low=1
    )
    default_output_tokens: float = option(64.0, "output length expected before any was seen", unit="tokens", low=1)
    lbgr_duplication_weight: float = option(
        4.0, "price of computing again what another engine has cached (V in docs/design.md)", low=0
    )
    lbgr_duplication_weight_learned: float = option(
        3.0, "the same before engines whose eviction order is not LRU: there a copy displaces little", low=0
    )
    lbgr_objective: str = option(
        "e2e",
        "what is made short: whole answers (e2e), the first token (ttft), or whole answers within clients' own bounds"
        " (slo: headers x-slo-ttft-ms, x-slo-tpot-ms)",
        among=OBJECTIVES,
    )
    lbgr_first_token_weight: float = option(
        1.0, "what a second before the first token costs beside being one of latency", low=0
    )
    lbgr_slo_weight: float = option(
        2.0, "what it costs to miss a client's bound, in times of the bound (objective slo)", low=0
    )
    lbgr_imposed_prefill: float = option(1.0, "weight of the prefill delay imposed on others", low=0)
    lbgr_imposed_decode: float = option(1.0, "weight of the decode delay imposed on others", low=0)

    lbgr_cold_samples: int = option(
        8, "samples it must have learned from before it is heeded (two a streamed request, one an unstreamed)", low=0
    )
    lbgr_error_bound: float = option(
        4.0,
        "median of |actual - predicted| / predicted over the last 64 answers from which it is not heeded; "
        "again below half of it",
        low=0.001,
    )

    # What is kept of the traffic
    ledger_decisions: int = option(
        10_000,
        "decisions kept for /explain and /decisions (up to about 3 KB each); 0: none",
        low=0,
        high=10_000_000,
    )
    drift_answers: int = option(
        64, "answers over which an engine's prediction error is averaged for the drift alarm", low=1, high=1_000_000
    )
    drift_bound: float = option(
        0.5,
        "mean of (actual - predicted) / predicted, to either side, from which the alarm is on; off below half of it",
        low=0.001,
    )
    record: str | None = option(
        None, "file that gets a line for every request, no text, for simulate --trace; .gz: compressed"
    )
    record_max_bytes: int = option(
        268_435_456, "size at which that file becomes FILE.1 and a new one begins", unit="bytes", low=4096
    )
    record_files: int = option(8, "older files kept, FILE.1 the newest; beyond, the oldest is deleted", low=1, high=999)

    snapshot: str | None = option(
        None, "file that keeps what was learned across restarts; one that does not fit is refused, with a warning"
    )
    snapshot_interval_secs: float = option(
        60.0, "time between two saves of it; the last is at shutdown", unit="seconds", low=0.1
    )

    # Policies to compare with
    lbgr_paper_miss_ms_per_token: float = option(4.0, "cost of an uncached prompt token (alpha_miss)", unit="ms", low=0)
    lbgr_paper_cached_ms_per_token: float = option(
        0.0, "cost of a cached prompt token (alpha_cached)", unit="ms", low=0
    )
    lbgr_paper_output_ms_per_token: float = option(0.0, "cost of an output token (O)", unit="ms", low=0)
    lbgr_paper_decay: float = option(31 / 32, "what a decay interval leaves of an engine's load (rho)", low=0, high=1)
    lbgr_paper_decay_interval_ms: float = option(20.0, "time between two decays", unit="ms", low=0.001)
    lbgr_paper_forgetting: float = option(
        0.95, "factor on older residuals with each new one (the authors' launcher: 0.992)", low=0.01, high=1
    )
    lbgr_paper_covariance: float = option(1e6, "start of the residual's covariance", low=1e-6)
    lbgr_paper_residual: str = option(
        "linear", "what is learned: linear as in the paper, or bias as in its authors' code", among=("linear", "bias")
    )
    consistent_hash_load_factor: float = option(
        1.25, "load an engine may have against the mean before its keys go to the next", low=1
    )
    cache_threshold: float = option(
        0.3, "share of a prompt that must be cached to be followed (cache_aware)", low=0, high=1
    )
    balance_abs_threshold: int = option(
        64,
        "queues that differ by more are balanced first, if also by balance_rel_threshold (cache_aware)",
        unit="requests",
        low=0,
    )
    balance_rel_threshold: float = option(
        1.5, "longest queue against the shortest, see balance_abs_threshold (cache_aware)", low=0
    )
    eviction_interval_secs: float = option(
        120.0, "time between two trims of the trees (cache_aware)", unit="seconds", low=0
    )
    max_tree_size: int = option(
        67_108_864, "size to which an engine's tree is trimmed (cache_aware)", unit="characters", low=0
    )
    smetric_hit_ratio: float = option(
        0.5, "share of the turn before that must still be cached for a conversation to stay", low=0, high=1
    )
    smetric_shared_ratio: float = option(
        0.5,
        "share of a prompt without a session that must be cached to make it a follow-up; 1: turns only",
        low=0,
        high=1,
    )
    smetric_slack: float = option(1.0, "factor on the target for the first token", low=0)
    smetric_ttft_slo_secs: float = option(1.0, "target for the first token of any prompt", unit="seconds", low=0)
    smetric_ttft_slo_secs_per_1k_tokens: float = option(
        0.0625, "what each thousand prompt tokens add to the target", unit="seconds", low=0
    )
    dynamo_kv_overlap_score_weight: float = option(1.0, "weight of blocks to prefill against blocks in use", low=0)
    preble_window_secs: float = option(180.0, "past assignments that count as load", unit="seconds", low=1)
    preble_balance_ratio: float = option(
        15.0, "load against the lightest engine's beyond which a cached prefix is not followed", low=1
    )


@dataclass(frozen=True)
class UpConfig(Config):
    """Options of `leafcutter up`: the gateway's, and those of the engines it starts."""

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
