"""Where the imitated versions of ComfyUI differ, in one place.

Source: ComfyUI 0.3.64 and 0.25.0, `server.py`, `execution.py`, `folder_paths.py`, and the conformance recordings. Of
0.26.0 there is no recording: it is 0.25.0 with the routes that web pages of its time cancel jobs by.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

SECRETS = ("auth_token_comfy_org", "api_key_comfy_org")

_WEIGHTS = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})
_TWO_PLACES = {
    "text_encoders": ("text_encoders", "clip"),
    "diffusion_models": ("unet", "diffusion_models"),
    "controlnet": ("controlnet", "t2i_adapter"),
}
_OTHER_EXTENSIONS: dict[str, frozenset[str]] = {
    "configs": frozenset({".yaml"}),
    "diffusers": frozenset({"folder"}),
    "custom_nodes": frozenset(),
    "classifiers": frozenset({""}),
}


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One kind of model: the folders under `models/` that hold it, and what its files end with (empty: anything)."""

    places: tuple[str, ...]
    extensions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Profile:
    """How one version behaves where another behaves differently."""

    version: str
    features: Mapping[str, Any]  # less max_upload_size, which is a setting
    model_kinds: tuple[str, ...]
    frontend_version: str
    templates_version: str
    docs_version: str
    has_jobs_api: bool
    has_cancel_routes: bool  # POST /api/jobs/{id}/cancel and /api/jobs/cancel
    has_assets_api: bool
    has_subgraphs: bool
    demands_uuid: bool  # a prompt_id that is no canonical UUID is refused
    stamps_create_time: bool
    hides_secrets_in_queue: bool
    names_missing_nodes: bool  # `missing_node_type` with details instead of `invalid_prompt`
    finds_cycles: bool  # while validating; else a cycle ends in Python's recursion limit
    lists_several_bad_values: bool
    throttles_progress: bool
    keeps_old_results: bool  # the node cache outlives the next prompt
    records_cached_without_client: bool  # outputs of cached nodes reach history even if nobody listens
    refuses_cross_site: bool
    file_times_in_ms: bool
    script_cache_control: str
    page_cache_control: str
    describes_more: bool  # object_info with is_input_list, search_aliases and so on

    def model_folder(self, kind: str) -> ModelFolder | None:
        """Return where models of a kind lie, or None if there is no such kind."""
        if kind not in self.model_kinds:
            return None
        return ModelFolder(_TWO_PLACES.get(kind, (kind,)), _OTHER_EXTENSIONS.get(kind, _WEIGHTS))


_KINDS_0_3_64 = (
    *("checkpoints", "configs", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision", "style_models"),
    *("embeddings", "diffusers", "vae_approx", "controlnet", "gligen", "upscale_models", "custom_nodes"),
    *("hypernetworks", "photomaker", "classifiers", "model_patches", "audio_encoders"),
)
_KINDS_0_25_0 = (
    *_KINDS_0_3_64[:14],
    "latent_upscale_models",
    *_KINDS_0_3_64[14:],
    *("background_removal", "frame_interpolation", "geometry_estimation", "optical_flow", "detection"),
)

_PROFILES = {
    "0.3.64": Profile(
        version="0.3.64",
        features={"supports_preview_metadata": True},
        model_kinds=_KINDS_0_3_64,
        frontend_version="1.27.10",
        templates_version="0.1.95",
        docs_version="0.2.6",
        has_jobs_api=False,
        has_cancel_routes=False,
        has_assets_api=False,
        has_subgraphs=False,
        demands_uuid=False,
        stamps_create_time=False,
        hides_secrets_in_queue=False,
        names_missing_nodes=False,
        finds_cycles=False,
        lists_several_bad_values=False,
        throttles_progress=False,
        keeps_old_results=False,
        records_cached_without_client=True,
        refuses_cross_site=False,
        file_times_in_ms=False,
        script_cache_control="no-cache",
        page_cache_control="no-cache",
        describes_more=False,
    ),
    "0.25.0": Profile(
        version="0.25.0",
        features={
            "supports_preview_metadata": True,
            "extension": {"manager": {"supports_v4": True}},
            "node_replacements": True,
            "assets": False,
        },
        model_kinds=_KINDS_0_25_0,
        frontend_version="1.45.15",
        templates_version="0.10.0",
        docs_version="0.5.4",
        has_jobs_api=True,
        has_cancel_routes=False,
        has_assets_api=True,
        has_subgraphs=True,
        demands_uuid=True,
        stamps_create_time=True,
        hides_secrets_in_queue=True,
        names_missing_nodes=True,
        finds_cycles=True,
        lists_several_bad_values=True,
        throttles_progress=True,
        keeps_old_results=True,
        records_cached_without_client=False,
        refuses_cross_site=True,
        file_times_in_ms=True,
        script_cache_control="no-store",
        page_cache_control="no-store, must-revalidate",
        describes_more=True,
    ),
}

_PROFILES["0.26.0"] = replace(_PROFILES["0.25.0"], version="0.26.0", has_cancel_routes=True)

VERSIONS = tuple(_PROFILES)


def profile_of(version: str) -> Profile:
    """Return the profile of a version. Raises ValueError, naming those there are."""
    try:
        return _PROFILES[version]
    except KeyError:
        raise ValueError(f"no such version: {version}; choose from {', '.join(VERSIONS)}") from None
