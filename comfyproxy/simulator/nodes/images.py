"""Nodes that load, make, change and save pictures.

Source: ComfyUI 0.25.0, `nodes.py`, `comfy_extras/nodes_images.py`, `custom_nodes/websocket_image_save.py`.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo

from ..pictures import Images, Masks
from ..sockets import Preview
from ..world import World
from .base import MAX_RESOLUTION, Call, InputTypes, Made, Node

_HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
_LARGE = 256 * 256  # pixels; saving more happens off the event loop


class EmptyImage(Node):
    name = "EmptyImage"
    display_name = "Empty Image"
    category = "image"
    returns = ("IMAGE",)
    older: ClassVar[Mapping[str, str]] = {"display_name": "EmptyImage"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        side = ("INT", {"default": 512, "min": 1, "max": MAX_RESOLUTION, "step": 1})
        return {
            "required": {
                "width": side,
                "height": side,
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
            }
        }

    async def run(self, call: Call) -> Made:
        color = call.inputs["color"]
        rgb = (color >> 16 & 0xFF, color >> 8 & 0xFF, color & 0xFF)
        frame = Image.new("RGB", (call.inputs["width"], call.inputs["height"]), rgb)
        return Made((Images((frame,) * call.inputs["batch_size"]),))


class LoadImage(Node):
    name = "LoadImage"
    display_name = "Load Image"
    category = "image"
    returns: ClassVar[tuple[str, ...]] = ("IMAGE", "MASK")
    essentials = "Basics"
    search_aliases: ClassVar[tuple[str, ...]] = (
        *("load image", "open image", "import image", "image input", "upload image", "read image"),
        "image loader",
    )
    changes = True
    validated = ("image",)

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {"required": {"image": (world.folders.input_images(), {"image_upload": True})}}

    @classmethod
    def validate(cls, world: World, values: Mapping[str, Any]) -> bool | str:
        if not Path(world.folders.input_path(values["image"])).exists():
            return f"Invalid image file: {values['image']}"
        return True

    @classmethod
    def fingerprint(cls, world: World, inputs: Mapping[str, Any]) -> Any:
        return hashlib.sha256(Path(world.folders.input_path(inputs["image"])).read_bytes()).hexdigest()

    async def run(self, call: Call) -> Made:
        # The path as text: Pillow names it in its error, and ComfyUI passes text.
        images, masks = self.load(call.world.folders.input_path(call.inputs["image"]))
        return Made((images, masks))

    @staticmethod
    def load(path: str) -> tuple[Images, Masks]:
        """Read a picture; raises what Pillow raises."""
        images: list[Image.Image] = []
        masks: list[Image.Image] = []
        with Image.open(path) as file:
            for raw in ImageSequence.Iterator(file):
                frame = ImageOps.exif_transpose(raw)
                if images and frame.size != images[0].size:
                    continue
                images.append(frame.convert("RGB"))
                if "A" in frame.getbands():
                    masks.append(ImageOps.invert(frame.getchannel("A")))
                else:
                    masks.append(Image.new("L", (64, 64)))
        return Images(tuple(images)), Masks(tuple(masks))


class LoadImageMask(LoadImage):
    name = "LoadImageMask"
    display_name = "Load Image (as Mask)"
    returns = ("MASK",)
    essentials = "Image Tools"
    search_aliases: ClassVar[tuple[str, ...]] = ("import mask", "alpha mask", "channel mask")
    older: ClassVar[Mapping[str, str]] = {"category": "mask"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        choices = super().input_types(world)["required"]
        return {"required": {**choices, "channel": (["alpha", "red", "green", "blue"],)}}

    async def run(self, call: Call) -> Made:
        images, masks = self.load(call.world.folders.input_path(call.inputs["image"]))
        channel = call.inputs["channel"][0].upper()
        if channel == "A":
            return Made((masks,))
        return Made((Masks(tuple(frame.getchannel(channel) for frame in images.frames)),))


class ImageInvert(Node):
    name = "ImageInvert"
    display_name = "Invert Image Colors"
    category = "image/color"
    returns = ("IMAGE",)
    essentials = "Image Tools"
    search_aliases: ClassVar[tuple[str, ...]] = ("reverse colors",)
    older: ClassVar[Mapping[str, str]] = {"category": "image", "display_name": "Invert Image"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {"required": {"image": ("IMAGE",)}}

    async def run(self, call: Call) -> Made:
        return Made((Images(tuple(ImageOps.invert(frame) for frame in call.inputs["image"].frames)),))


class ImageScale(Node):
    name = "ImageScale"
    display_name = "Upscale Image"
    category = "image/upscaling"
    returns = ("IMAGE",)
    essentials = "Image Tools"
    search_aliases: ClassVar[tuple[str, ...]] = (
        *("resize", "resize image", "scale image", "image resize", "zoom", "zoom in"),
        "change size",
    )
    _methods: ClassVar[dict[str, Image.Resampling]] = {
        "nearest-exact": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "area": Image.Resampling.BOX,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
    }

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        side = ("INT", {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1})
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(cls._methods),),
                "width": side,
                "height": side,
                "crop": (["disabled", "center"],),
            }
        }

    async def run(self, call: Call) -> Made:
        images: Images = call.inputs["image"]
        width, height = call.inputs["width"], call.inputs["height"]
        if not width and not height:
            return Made((images,))
        width = width or max(1, round(images.size[0] * height / images.size[1]))
        height = height or max(1, round(images.size[1] * width / images.size[0]))
        method = self._methods[call.inputs["upscale_method"]]
        if call.inputs["crop"] == "center":
            return Made((Images(tuple(ImageOps.fit(frame, (width, height), method) for frame in images.frames)),))
        return Made((Images(tuple(frame.resize((width, height), method) for frame in images.frames)),))


class SaveImage(Node):
    name = "SaveImage"
    display_name = "Save Image"
    category = "image"
    description = "Saves pictures in the output folder."
    output_node = True
    essentials = "Basics"
    search_aliases: ClassVar[tuple[str, ...]] = (
        "save",
        "save image",
        "export image",
        "output image",
        "write image",
        "download",
    )

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.root, self.kind = world.folders.output, "output"
        self.suffix, self.compression = "", 4

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The pictures that are saved."}),
                "filename_prefix": (
                    "STRING",
                    {
                        "default": "ComfyUI",
                        "tooltip": "What the names begin with; may hold %date:yyyy-MM-dd% and such.",
                    },
                ),
            },
            "hidden": dict(_HIDDEN),
        }

    async def run(self, call: Call) -> Made:
        images: Images = call.inputs["images"]
        prefix = f"{call.inputs.get('filename_prefix', 'ComfyUI')}{self.suffix}"
        folder, name, counter, subfolder = call.world.folders.save_place(prefix, self.root, *images.size)
        metadata = PngInfo()
        if call.inputs.get("prompt") is not None:
            metadata.add_text("prompt", json.dumps(call.inputs["prompt"]))
        for key, value in (call.inputs.get("extra_pnginfo") or {}).items():
            metadata.add_text(key, json.dumps(value))
        saved = []
        for number, frame in enumerate(images.frames):
            file = f"{name.replace('%batch_num%', str(number))}_{counter + number:05}_.png"
            if frame.width * frame.height > _LARGE:
                await asyncio.to_thread(self._save, frame, folder / file, metadata)
            else:
                self._save(frame, folder / file, metadata)
            saved.append({"filename": file, "subfolder": subfolder, "type": self.kind})
        return Made(ui={"images": saved})

    def _save(self, frame: Image.Image, path: Path, metadata: PngInfo) -> None:
        frame.save(path, pnginfo=metadata, compress_level=self.compression)


class PreviewImage(SaveImage):
    name = "PreviewImage"
    display_name = "Preview Image"
    search_aliases: ClassVar[tuple[str, ...]] = (
        *("preview", "preview image", "show image", "view image", "display image"),
        "image viewer",
    )

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.root, self.kind = world.folders.temp, "temp"
        letters = "".join(world.random.choice("abcdefghijklmnopqrstupvxyz") for _ in range(5))
        self.suffix, self.compression = f"_temp_{letters}", 1

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {"required": {"images": ("IMAGE",)}, "hidden": dict(_HIDDEN)}


class SaveImageWebsocket(Node):
    """Sends whole pictures as PNG previews; never cached, since its fingerprint is the time."""

    name = "SaveImageWebsocket"
    display_name = "Save Image (Websocket)"
    category = "image"
    output_node = True
    changes = True
    python_module = "custom_nodes.websocket_image_save"
    older: ClassVar[Mapping[str, str]] = {"category": "api/image", "display_name": "SaveImageWebsocket"}

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {"required": {"images": ("IMAGE",)}}

    @classmethod
    def fingerprint(cls, world: World, inputs: Mapping[str, Any]) -> Any:
        return time.time()

    async def run(self, call: Call) -> Made:
        frames = call.inputs["images"].frames
        bar = call.progress_bar(len(frames))
        for step, frame in enumerate(frames):
            bar.update(step, Preview("PNG", frame, None))
        return Made()
