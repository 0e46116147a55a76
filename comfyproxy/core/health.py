"""Health of a backend: probes and traffic in, healthy or not out."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Health:
    """One backend's health record; unhealthy until the first probe passes."""

    healthy: bool = False
    streak: int = 0  # observations in a row that speak against `healthy`


def observe(health: Health, ok: bool, *, rise: int, fall: int) -> Health:
    """Fold in one observation: `rise` passes restore a backend, `fall` failures eject it."""
    if ok == health.healthy:
        return replace(health, streak=0)
    streak = health.streak + 1
    if streak < (rise if ok else fall):
        return replace(health, streak=streak)
    return Health(healthy=ok)


def eject(health: Health) -> Health:
    """Take out at once: the server is proven dead (nothing listens where it was), so passes begin anew."""
    return replace(health, healthy=False, streak=0)
