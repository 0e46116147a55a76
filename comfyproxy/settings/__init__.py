"""What can be configured, and how it is read from a file, the environment and the command line."""

from comfyproxy.settings.schema import (
    HealthCheck,
    HistorySettings,
    LoadBalancing,
    LoggingSettings,
    Nodes,
    NodeSettings,
    OutputSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    WebsocketSettings,
)

__all__ = [
    "HealthCheck",
    "HistorySettings",
    "LoadBalancing",
    "LoggingSettings",
    "NodeSettings",
    "Nodes",
    "OutputSettings",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "WebsocketSettings",
]
