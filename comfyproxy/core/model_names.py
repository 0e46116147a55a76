"""Names of model files, which every server writes as its system writes paths.

A Windows server lists `SDXL\\x.safetensors`, a Linux one `SDXL/x.safetensors`, and each takes its own spelling alone
(ComfyUI 0.25.0, `folder_paths.py`, `recursive_search`; `execution.py`, `validate_inputs`).
"""

SUFFIXES = (
    *(".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl"),  # ComfyUI's own
    *(".gguf", ".onnx", ".engine"),  # of well-known custom nodes
)
_LONGEST = max(map(len, SUFFIXES))


def is_model(name: str) -> bool:
    """Whether a choice names a model file."""
    return name[-_LONGEST:].lower().endswith(SUFFIXES)


def canonical(name: str) -> str:
    """Return the one form for all spellings of a model's name, with slashes; any other choice as it is."""
    return name.replace("\\", "/") if "\\" in name and is_model(name) else name
