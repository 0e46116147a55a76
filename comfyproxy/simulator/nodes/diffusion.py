"""The nodes of the stock text-to-image workflow; what they paint depends on their inputs alone.

Source of names, limits and choices: ComfyUI 0.25.0 and 0.3.64, `nodes.py`, `comfy/samplers.py`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from ..pictures import Images, Latent, painted
from ..sockets import Preview
from ..world import World
from .base import MAX_RESOLUTION, Call, InputTypes, Made, Node

_STEP_SECONDS = 0.05  # a 20-step picture takes a second
_PREVIEW_SIZE = 512

_SAMPLERS_OLD = (
    *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2"),
    *("dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp"),
    *("dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    *("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm"),
    *("ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral"),
    *("res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2"),
    *("seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2"),
)
_SAMPLERS = (*_SAMPLERS_OLD[:6], "exp_heun_2_x0", "exp_heun_2_x0_sde", *_SAMPLERS_OLD[6:])
_SCHEDULERS = (
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic"),
    "kl_optimal",
)


class _Opaque:
    """Prints as the object it stands for does."""

    shown_as: ClassVar[str]

    def __str__(self) -> str:
        return f"<{self.shown_as} object at 0x{id(self):012x}>"


@dataclass(frozen=True, slots=True)
class Model(_Opaque):
    shown_as: ClassVar[str] = "comfy.model_patcher.ModelPatcher"
    checkpoint: str
    patches: tuple[str, ...] = ()

    __str__ = _Opaque.__str__


@dataclass(frozen=True, slots=True)
class Clip(_Opaque):
    shown_as: ClassVar[str] = "comfy.sd.CLIP"
    checkpoint: str
    patches: tuple[str, ...] = ()

    __str__ = _Opaque.__str__


@dataclass(frozen=True, slots=True)
class Vae(_Opaque):
    shown_as: ClassVar[str] = "comfy.sd.VAE"
    checkpoint: str

    __str__ = _Opaque.__str__


@dataclass(frozen=True, slots=True)
class Conditioning:
    text: str
    clip: Clip


class CheckpointLoaderSimple(Node):
    name = "CheckpointLoaderSimple"
    display_name = "Load Checkpoint"
    category = "model/loaders"
    description = "Loads a diffusion model checkpoint; diffusion models denoise latents."
    returns = ("MODEL", "CLIP", "VAE")
    output_tooltips = ("Denoises latents.", "Encodes text prompts.", "Encodes and decodes pictures.")
    search_aliases = ("load model", "checkpoint", "model loader", "load checkpoint", "ckpt", "model")
    older: ClassVar[Mapping[str, str]] = {"category": "loaders"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        names = world.folders.model_names("checkpoints")
        return {"required": {"ckpt_name": (names, {"tooltip": "The name of the checkpoint to load."})}}

    async def run(self, call: Call) -> Made:
        name = call.inputs["ckpt_name"]
        await call.world.memory.use(name)
        return Made((Model(name), Clip(name), Vae(name)))


class LoraLoader(Node):
    name = "LoraLoader"
    display_name = "Load LoRA (Model and CLIP)"
    category = "model/loaders"
    description = "Changes a diffusion and a CLIP model, such as for a style; several can be linked."
    returns = ("MODEL", "CLIP")
    output_tooltips = ("The changed diffusion model.", "The changed CLIP model.")
    essentials = "Image Generation"
    search_aliases = ("lora", "load lora", "apply lora", "lora loader", "lora model")
    older: ClassVar[Mapping[str, str]] = {"category": "loaders", "display_name": "Load LoRA"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        strength = {
            "default": 1.0,
            "min": -100.0,
            "max": 100.0,
            "step": 0.01,
            "tooltip": "How strongly; may be negative.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The diffusion model."}),
                "clip": ("CLIP", {"tooltip": "The CLIP model."}),
                "lora_name": (world.folders.model_names("loras"), {"tooltip": "The name of the LoRA."}),
                "strength_model": ("FLOAT", strength),
                "strength_clip": ("FLOAT", strength),
            }
        }

    async def run(self, call: Call) -> Made:
        model, clip, lora = call.inputs["model"], call.inputs["clip"], call.inputs["lora_name"]
        strengths = f"{call.inputs['strength_model']}:{call.inputs['strength_clip']}"
        patch = f"{lora}:{strengths}"
        return Made((Model(model.checkpoint, (*model.patches, patch)), Clip(clip.checkpoint, (*clip.patches, patch))))


class VAELoader(Node):
    name = "VAELoader"
    display_name = "Load VAE"
    category = "model/loaders"
    returns = ("VAE",)
    older: ClassVar[Mapping[str, str]] = {"category": "loaders"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {"required": {"vae_name": ([*world.folders.model_names("vae"), "pixel_space"],)}}

    async def run(self, call: Call) -> Made:
        return Made((Vae(call.inputs["vae_name"]),))


class CLIPTextEncode(Node):
    name = "CLIPTextEncode"
    display_name = "CLIP Text Encode (Prompt)"
    category = "model/conditioning"
    description = "Encodes a text with a CLIP model, to guide a diffusion model."
    returns = ("CONDITIONING",)
    output_tooltips = ("The encoded text.",)
    search_aliases = (
        *("text", "prompt", "text prompt", "positive prompt", "negative prompt", "encode text", "text encoder"),
        "encode prompt",
    )
    older: ClassVar[Mapping[str, str]] = {"category": "conditioning"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {
            "required": {
                "text": ("STRING", {"multiline": True, "dynamicPrompts": True, "tooltip": "The text to encode."}),
                "clip": ("CLIP", {"tooltip": "The CLIP model to encode with."}),
            }
        }

    async def run(self, call: Call) -> Made:
        return Made((Conditioning(call.inputs["text"], call.inputs["clip"]),))


class EmptyLatentImage(Node):
    name = "EmptyLatentImage"
    display_name = "Empty Latent Image"
    category = "model/latent"
    description = "Makes a batch of empty latents to be denoised."
    returns = ("LATENT",)
    output_tooltips = ("The empty latents.",)
    search_aliases = ("empty", "empty latent", "new latent", "create latent", "blank latent", "blank")
    older: ClassVar[Mapping[str, str]] = {"category": "latent"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        side = {"default": 512, "min": 16, "max": MAX_RESOLUTION, "step": 8, "tooltip": "In pixels."}
        return {
            "required": {
                "width": ("INT", side),
                "height": ("INT", side),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "How many pictures."}),
            }
        }

    async def run(self, call: Call) -> Made:
        width, height = (call.inputs[side] // 8 * 8 for side in ("width", "height"))
        return Made((Latent(width, height, call.inputs["batch_size"]),))


class KSampler(Node):
    name = "KSampler"
    display_name = "KSampler"
    category = "model/sampling"
    description = "Denoises a latent with a model, a positive and a negative conditioning."
    returns = ("LATENT",)
    output_tooltips = ("The denoised latent.",)
    search_aliases = ("sampler", "sample", "generate", "denoise", "diffuse", "txt2img", "img2img")
    older: ClassVar[Mapping[str, str]] = {"category": "sampling"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        samplers = _SAMPLERS if world.profile.describes_more else _SAMPLERS_OLD
        seed = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}
        cfg = {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "Denoises the latent."}),
                "seed": ("INT", {**seed, "tooltip": "Makes the noise."}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000, "tooltip": "How many steps."}),
                "cfg": ("FLOAT", {**cfg, "tooltip": "How closely to follow the prompt."}),
                "sampler_name": (list(samplers), {"tooltip": "The algorithm."}),
                "scheduler": (list(_SCHEDULERS), {"tooltip": "How the noise is removed."}),
                "positive": ("CONDITIONING", {"tooltip": "What to have in the picture."}),
                "negative": ("CONDITIONING", {"tooltip": "What to keep out of it."}),
                "latent_image": ("LATENT", {"tooltip": "What to denoise."}),
                "denoise": (
                    "FLOAT",
                    {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "How much of it to change."},
                ),
            }
        }

    async def run(self, call: Call) -> Made:
        inputs, world = call.inputs, call.world
        latent: Latent = inputs["latent_image"]
        await world.memory.use(inputs["model"].checkpoint)
        seed = _seed_of(world, inputs)
        bar = call.progress_bar(inputs["steps"])
        final = painted(latent.width // 8, latent.height // 8, seed)
        noise = painted(latent.width // 8, latent.height // 8, ~seed)
        for step in range(1, inputs["steps"] + 1):
            await world.pace.spend(_STEP_SECONDS)
            # The previewer blows the latent up to 512 pixels before it compresses it.
            bar.update(step, Preview("JPEG", Image.blend(noise, final, step / inputs["steps"]), _PREVIEW_SIZE))
        base = latent.base if inputs.get("denoise", 1.0) < 1 else None
        return Made((Latent(latent.width, latent.height, latent.batch_size, seed, base),))


class VAEDecode(Node):
    name = "VAEDecode"
    display_name = "VAE Decode"
    category = "model/latent"
    description = "Decodes latents to pictures."
    returns = ("IMAGE",)
    output_tooltips = ("The decoded picture.",)
    search_aliases = ("decode", "decode latent", "latent to image", "render latent")
    older: ClassVar[Mapping[str, str]] = {"category": "latent"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {
            "required": {
                "samples": ("LATENT", {"tooltip": "The latent to decode."}),
                "vae": ("VAE", {"tooltip": "The VAE to decode with."}),
            }
        }

    async def run(self, call: Call) -> Made:
        latent: Latent = call.inputs["samples"]
        if latent.seed is None:
            grey = Image.new("RGB", (latent.width, latent.height), (127, 127, 127))
            return Made((latent.base or Images((grey,) * latent.batch_size),))
        frames = [painted(latent.width, latent.height, latent.seed + number) for number in range(latent.batch_size)]
        if latent.base is not None:
            frames = [Image.blend(old, new, 0.5) for old, new in zip(latent.base.frames, frames, strict=True)]
        return Made((Images(tuple(frames)),))


class VAEEncode(Node):
    name = "VAEEncode"
    display_name = "VAE Encode"
    category = "model/latent"
    returns = ("LATENT",)
    search_aliases = ("encode", "encode image", "image to latent")
    older: ClassVar[Mapping[str, str]] = {"category": "latent"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    async def run(self, call: Call) -> Made:
        images: Images = call.inputs["pixels"]
        width, height = (max(8, side // 8 * 8) for side in images.size)
        whole = Images(tuple(frame.crop((0, 0, width, height)) for frame in images.frames))
        return Made((Latent(width, height, len(images.frames), base=whole),))


def _seed_of(world: World, inputs: Mapping[str, Any]) -> int:
    """Fold everything the picture depends on into one number."""
    model: Model = inputs["model"]
    positive: Conditioning = inputs["positive"]
    negative: Conditioning = inputs["negative"]
    facts = (
        *(world.options.seed, model.checkpoint, model.patches, positive.text, negative.text),
        *(inputs[name] for name in ("seed", "steps", "cfg", "sampler_name", "scheduler")),
    )
    return int.from_bytes(hashlib.sha256(repr(facts).encode()).digest()[:8], "big")
