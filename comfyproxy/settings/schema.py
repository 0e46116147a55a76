"""Every key that can be configured, with its type, its range and its default: the one table of them.

Parsing, the names of environment variables, what `comfyproxy check` prints and the check of `config/reference.yaml`
are all driven by these classes. A section is a field whose type is a dataclass; everything else is a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from comfyproxy.settings.addresses import COMFYUI_PORT, Address, checked_host, checked_url, parse_url
from comfyproxy.settings.rules import (
    BareWord,
    Range,
    checked_name,
    checked_origin,
    checked_path,
    checked_strategy,
    checked_text,
)

Seconds = Annotated[float, Range(above=0, unit="seconds")]
Megabytes = Annotated[float, Range(above=0, unit="megabytes")]  # of 1024 * 1024 bytes
Count = Annotated[int, Range(minimum=1)]
Port = Annotated[int, Range(minimum=1, maximum=65535)]


@dataclass(frozen=True, kw_only=True)
class Preference:
    """The keys of a node's `metadata` that strategies read; all others are free."""

    weight: Annotated[float, Range(above=0)] | None = None  # share of the prompts under `weighted`
    priority: Count | None = None  # 1 is used first under `priority_based`


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """One backend. `host` and `port`, or `url` instead; whichever is given, all three are set afterwards.

    Raises ValueError for an address that is none, and where `host` and `port` contradict `url`.
    """

    node_id: Annotated[str, checked_name]
    host: Annotated[str, checked_host] = ""  # an IPv6 address without its brackets
    port: Port = COMFYUI_PORT
    url: Annotated[str, checked_url] = ""  # usable as it stands: with brackets where needed, without a trailing slash
    max_concurrent: Count = 2
    capabilities: tuple[Annotated[str, checked_text], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.url or self.host):
            raise ValueError("host is missing (or url in its place)")
        address = parse_url(self.url) if self.url else Address("http", checked_host(self.host), self.port)
        # Without a host there is nothing to contradict: the port is then the default that nobody wrote.
        if self.host and (checked_host(self.host), self.port) != (address.host, address.port):
            raise ValueError(
                f"host and port ({self.host}, {self.port}) contradict the url ({address}); write one or the other"
            )
        for name, value in {"host": address.host, "port": address.port, "url": str(address)}.items():
            object.__setattr__(self, name, value)

    @property
    def preference(self) -> Preference:
        """What strategies read of the metadata."""
        return Preference(weight=self.metadata.get("weight"), priority=self.metadata.get("priority"))


@dataclass(frozen=True, kw_only=True)
class LoadBalancing:
    """How a backend is chosen for a prompt."""

    strategy: Annotated[str, checked_strategy] = "model_affinity"
    enable_failover: bool = True
    max_retries: Annotated[int, Range(minimum=0)] = 3
    retry_on: tuple[Literal["out_of_memory"], ...] = ()


@dataclass(frozen=True, kw_only=True)
class HealthCheck:
    """When a backend is taken out, and when it comes back."""

    interval: Seconds = 30.0
    timeout: Seconds = 5.0
    heartbeat_timeout: Seconds = 60.0
    stall_timeout: Seconds | None = None
    rise: Count = 2
    fall: Count = 3


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The backends, and how they are used."""

    static_nodes: tuple[NodeSettings, ...] = ()
    load_balancing: LoadBalancing = field(default_factory=LoadBalancing)
    health_check: HealthCheck = field(default_factory=HealthCheck)


@dataclass(frozen=True, kw_only=True)
class MaxBypassSettings:
    """How long a prompt may be passed over by others for the sake of models that are in memory."""

    count: Annotated[int, Range(minimum=0)] = 1_000
    seconds: Annotated[float, Range(minimum=0, unit="seconds")] = 600.0


@dataclass(frozen=True, kw_only=True)
class SchedulingSettings:
    """In which order prompts that wait go out."""

    max_bypass: MaxBypassSettings = field(default_factory=MaxBypassSettings)
    priority_ageing: Seconds = 300.0


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where the proxy listens, and what it takes."""

    host: Annotated[str, checked_host] = "127.0.0.1"
    port: Annotated[int, Range(minimum=0, maximum=65535)] = 8188  # 0: the system chooses one
    cors_origin: Annotated[str, checked_origin] | None = None
    max_body_mb: Megabytes = 100.0
    shutdown_timeout: Annotated[float, Range(minimum=0, unit="seconds")] = 30.0


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Where jobs last."""

    type: Literal["sqlite", "memory"] = "sqlite"
    data_dir: Annotated[Path, checked_path] = Path("data")  # relative to the working directory
    synchronous: Literal["full", "normal"] = "full"


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """How much may wait, and for what."""

    max_jobs: Count = 100_000
    wait_for_backend: Annotated[float, Range(minimum=0, unit="seconds")] = 0.0


@dataclass(frozen=True, kw_only=True)
class HistorySettings:
    """How much is remembered of what has run."""

    max_items: Count = 10_000


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """How the files that backends make are named, and whether copies of them are kept."""

    shared: bool = False
    keep: bool = False
    keep_max_gb: Annotated[float, Range(above=0, unit="gigabytes")] = 10.0  # of 1024 ** 3 bytes
    keep_max_days: Annotated[float, Range(above=0, unit="days")] = 30.0


@dataclass(frozen=True, kw_only=True)
class CatalogSettings:
    """How what the backends have is kept."""

    max_age: Annotated[float, Range(minimum=0, unit="seconds")] = 5.0


@dataclass(frozen=True, kw_only=True)
class WebsocketSettings:
    """How many clients may listen, and what may wait for those that read slowly or are away."""

    max_sockets: Count = 20_000
    client_buffer_mb: Megabytes = 32.0
    preview_buffer_mb: Annotated[float, Range(minimum=0, unit="megabytes")] = 4.0  # 0: the newest preview only
    mailbox_mb: Annotated[float, Range(minimum=0, unit="megabytes")] = 64.0  # of all absent clients together
    heartbeat: Seconds = 25.0


@dataclass(frozen=True, kw_only=True)
class LoggingSettings:
    """What is logged, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be configured. `Settings()` is valid: the defaults, and no backend."""

    nodes: Nodes = field(default_factory=Nodes)
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    history: HistorySettings = field(default_factory=HistorySettings)
    outputs: Annotated[OutputSettings, BareWord("shared")] = field(default_factory=OutputSettings)
    catalog: CatalogSettings = field(default_factory=CatalogSettings)
    websocket: WebsocketSettings = field(default_factory=WebsocketSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    interrupt_without_id: Literal["all", "reject"] = "all"
