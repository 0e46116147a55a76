"""What a backend offers, held against what a job needs."""

from dataclasses import dataclass
from enum import StrEnum

from comfyproxy.core.catalog import Catalog
from comfyproxy.core.jobs import BackendId
from comfyproxy.core.model_names import is_model
from comfyproxy.core.needs import Needs


class Lack(StrEnum):
    """The kinds of things that a backend may lack."""

    NODE_CLASS = "node class"
    CHOICE = "choice"
    CAPABILITY = "capability"
    PIN = "pin"


# What people call the models of the inputs that they know best.
_NOUNS = {
    "ckpt_name": "checkpoint",
    "lora_name": "LoRA",
    "vae_name": "VAE",
    "unet_name": "diffusion model",
    "control_net_name": "ControlNet",
    "style_model_name": "style model",
    "gligen_name": "GLIGEN model",
    "hypernetwork_name": "hypernetwork",
}


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that a backend lacks for a job."""

    kind: Lack
    name: str  # of the class, the choice, the capability, or the backend that it would have to be
    node_class: str = ""  # whose list lacks the choice
    input_name: str = ""

    def __str__(self) -> str:
        if self.kind is Lack.PIN:
            return f'it is not "{self.name}"'
        if self.kind is not Lack.CHOICE:
            return f'{self.kind} "{self.name}"'
        noun = _NOUNS.get(self.input_name, "model") if is_model(self.name) else self.kind
        return f'{noun} "{self.name}" ({self.node_class}.{self.input_name})'


@dataclass(frozen=True, slots=True)
class Offer:
    """What one backend has.

    Attributes:
        capabilities: declared ones; a backend that declares none has all.
        catalog: None as long as it is not known; then it may have everything.
    """

    backend: BackendId
    capabilities: frozenset[str] = frozenset()
    catalog: Catalog | None = None

    def can(self, needs: Needs) -> bool:
        """Whether a job can run here."""
        if needs.pinned is not None and needs.pinned != self.backend:
            return False
        if self.capabilities and not needs.capabilities <= self.capabilities:
            return False
        catalog = self.catalog
        if catalog is None:
            return True
        return needs.classes <= catalog.classes and all(_offers(catalog, *choice) for choice in needs.choices)

    def missing(self, needs: Needs) -> tuple[Missing, ...]:
        """Return what a job needs that is not here, in an order that does not change; empty where it can run."""
        found: list[Missing] = []
        if needs.pinned is not None and needs.pinned != self.backend:
            found.append(Missing(Lack.PIN, needs.pinned))
        if self.capabilities:
            lacking = sorted(needs.capabilities - self.capabilities)
            found += [Missing(Lack.CAPABILITY, name) for name in lacking]
        if (catalog := self.catalog) is not None:
            found += [Missing(Lack.NODE_CLASS, name) for name in sorted(needs.classes - catalog.classes)]
            found += [
                Missing(Lack.CHOICE, value, node_class, input_name)
                for node_class, input_name, value in sorted(needs.choices)
                if not _offers(catalog, node_class, input_name, value)
            ]
        return tuple(found)


def _offers(catalog: Catalog, node_class: str, input_name: str, value: str) -> bool:
    choices = catalog.choices(node_class, input_name)
    return choices is None or choices.spelling(value) is not None
