"""The model-free nodes that the conformance scenarios use."""

from PIL import Image

from ..pictures import Images
from ..sockets import Preview
from ..world import World
from .base import Call, InputTypes, Made, Node

_MODULE = "custom_nodes.conformance_nodes"


class ConformanceSampler(Node):
    """Takes its time, reports progress, sends previews, and can fail at a step."""

    name = "ConformanceSampler"
    category = "conformance"
    python_module = _MODULE
    returns = ("IMAGE",)

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {
            "required": {
                "image": ("IMAGE",),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFF}),
                "steps": ("INT", {"default": 4, "min": 1, "max": 10000}),
                "seconds": ("FLOAT", {"default": 0.2, "min": 0.0, "max": 3600.0}),
                "preview": ("BOOLEAN", {"default": False}),
                "fail_at": ("INT", {"default": 0, "min": 0, "max": 10000}),
            }
        }

    async def run(self, call: Call) -> Made:
        images: Images = call.inputs["image"]
        steps = call.inputs["steps"]
        bar = call.progress_bar(steps)
        shade = call.inputs["seed"] * 37 % 256
        for step in range(1, steps + 1):
            await call.world.pace.spend(call.inputs["seconds"] / steps)
            if step == call.inputs["fail_at"]:
                raise ValueError(f"conformance failure at step {step}")
            picture = Image.new("RGB", (64, 64), (shade, step % 256, 0))
            bar.update(step, Preview("JPEG", picture, 64) if call.inputs["preview"] else None)
        frame = Image.new("RGB", images.size, (shade, shade, shade))
        return Made((Images((frame,) * len(images.frames)),))


class ConformanceModel(Node):
    """Offers the checkpoints of this server, and passes its picture on."""

    name = "ConformanceModel"
    category = "conformance"
    python_module = _MODULE
    returns = ("IMAGE",)

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {"required": {"ckpt_name": (world.folders.model_names("checkpoints"),), "image": ("IMAGE",)}}

    async def run(self, call: Call) -> Made:
        return Made((call.inputs["image"],))


class ConformanceText(Node):
    """Shows a text and makes no file."""

    name = "ConformanceText"
    category = "conformance"
    python_module = _MODULE
    output_node = True

    @classmethod
    def input_types(cls, world: World) -> InputTypes:
        return {"required": {"text": ("STRING", {"default": ""})}}

    async def run(self, call: Call) -> Made:
        return Made(ui={"text": [call.inputs["text"]]})
