"""What can be configured, and how it is read from a file, the environment and the command line.

`schema` is the table of all keys. `document` reads YAML, `reading` compares it with the table, `loading` adds the
environment and the command line; `problems` are what is wrong, for people.
"""

from comfyproxy.settings.describing import describe, warnings
from comfyproxy.settings.loading import load
from comfyproxy.settings.problems import BadSettings, Problem
from comfyproxy.settings.schema import (
    CatalogSettings,
    HealthCheck,
    HistorySettings,
    LoadBalancing,
    LoggingSettings,
    MaxBypassSettings,
    Nodes,
    NodeSettings,
    OutputSettings,
    Preference,
    QueueSettings,
    SchedulingSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    WebsocketSettings,
)

__all__ = [
    "BadSettings",
    "CatalogSettings",
    "HealthCheck",
    "HistorySettings",
    "LoadBalancing",
    "LoggingSettings",
    "MaxBypassSettings",
    "NodeSettings",
    "Nodes",
    "OutputSettings",
    "Preference",
    "Problem",
    "QueueSettings",
    "SchedulingSettings",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "WebsocketSettings",
    "describe",
    "load",
    "warnings",
]
