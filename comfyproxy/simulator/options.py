"""What a simulated ComfyUI is told at its start."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """The settings of one simulated server.

    Attributes:
        version: which ComfyUI to imitate; one of `profile.VERSIONS`.
        base_dir: where input, output, temp, user and models lie; None makes a temporary folder.
        name: the name of the simulated GPU.
        checkpoints: file names that `models/checkpoints` is filled with, as small placeholder files.
        speed: how many times faster than nominal everything is.
        load_seconds: what it costs, at nominal speed, to bring a checkpoint into memory.
        vram_models: how many checkpoints memory holds at once.
        windows: write the names of models with backslashes, as a server on Windows does.
        vram_gb: the memory of its GPU, in GiB, as /system_stats tells it.
        seed: changes every generated picture and the names of temporary files.
        control: serve the faults over HTTP on a port of their own.
        control_port: that port; 0 takes a free one.
        without_nodes: node classes it lacks.
        frontend: a folder with a web page to serve at `/`; None serves a page of a few lines.
        max_upload_mb: the largest request body, in MiB (`--max-upload-size`).
    """

    version: str = "0.25.0"
    base_dir: Path | None = None
    name: str = "simulated"
    checkpoints: tuple[str, ...] = ()
    speed: float = 1.0
    load_seconds: float = 0.0
    vram_models: int = 1
    windows: bool = False
    vram_gb: float = 24
    seed: int = 0
    control: bool = False
    control_port: int = 0
    without_nodes: tuple[str, ...] = ()
    frontend: Path | None = None
    max_upload_mb: float = 100

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise ValueError(f"speed must be above 0, not {self.speed:g}")
        if self.load_seconds < 0:
            raise ValueError(f"load_seconds must not be negative, not {self.load_seconds:g}")
        if self.vram_models < 1:
            raise ValueError(f"vram_models must be at least 1, not {self.vram_models}")
