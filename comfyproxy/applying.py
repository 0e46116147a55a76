"""Which settings take effect while the proxy runs, and how: all that is not here needs a restart."""

import logging
from typing import cast

from comfyproxy.assembly import Parts
from comfyproxy.service.reloading import Applier
from comfyproxy.settings import Settings
from comfyproxy.settings.changes import NODE, NODES
from comfyproxy.upstream import BackendClient


def appliers(parts: Parts) -> list[Applier]:
    """Return who lets settings take effect on the parts; who may refuse comes first."""

    def balance(settings: Settings) -> None:
        balancing, failover = settings.nodes.load_balancing, parts.failover
        failover.is_enabled, failover.max_retries = balancing.enable_failover, balancing.max_retries
        failover.retry_on = balancing.retry_on

    def check_health(settings: Settings) -> None:
        check = settings.nodes.health_check
        parts.fleet.health_check = check
        for part in (parts.settler, parts.sender, parts.withdrawals, parts.reconciler):
            part.heartbeat_timeout_s = check.heartbeat_timeout
        parts.reconciler.stall_timeout_s = check.stall_timeout
        parts.sources.patience_s = check.timeout
        for backend in parts.fleet:
            cast(BackendClient, backend.client).wait_for(check.timeout)
        parts.prober.probe_every(check.interval)

    def bound_queue(settings: Settings) -> None:
        parts.submissions.max_jobs = settings.queue.max_jobs
        parts.submissions.wait_for_backend_s = settings.queue.wait_for_backend

    def age_catalog(settings: Settings) -> None:
        parts.catalogs.max_age_s = settings.catalog.max_age
        parts.sources.changed()  # what is built holds for as long as it did before

    def limit_interrupts(settings: Settings) -> None:
        parts.control.may_interrupt_all = settings.interrupt_without_id == "all"

    def set_log_level(settings: Settings) -> None:
        logging.getLogger().setLevel(settings.logging.level.upper())

    return [
        Applier(("nodes.load_balancing.strategy", "scheduling."), parts.apply_scheduling),
        Applier(
            tuple(f"nodes.load_balancing.{name}" for name in ("enable_failover", "max_retries", "retry_on")), balance
        ),
        Applier(("nodes.health_check.",), check_health),
        Applier((NODES, NODE, f"{NODE}."), lambda settings: parts.roster.apply(settings.nodes.static_nodes)),
        Applier(("queue.",), bound_queue),
        Applier(("catalog.max_age",), age_catalog),
        Applier(("interrupt_without_id",), limit_interrupts),
        Applier(("logging.level",), set_log_level),
    ]
