"""What can be made to go wrong with a simulated server.

Counting faults take a number of prompts, or True for all of them from now on:

    backend.faults.cut_after_accepting = 1   # the next POST /prompt only
    backend.faults.fail_prompts = True       # until set back to False
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields
from typing import Any

COUNTED = ("cut_before_accepting", "cut_after_accepting", "fail_prompts", "out_of_memory")
_RESET = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # SO_LINGER: on, for no time at all


@dataclass(slots=True)
class Hooks:
    """What only the running server can do; set while it runs."""

    stop_listening: Callable[[], Coroutine[Any, Any, None]]
    listen_again: Callable[[], Coroutine[Any, Any, None]]
    pause_sockets: Callable[[bool], None]
    cut_sockets: Callable[[], None]


@dataclass(slots=True)
class Settings:
    """The faults that are simply on or off.

    Attributes:
        cut_before_accepting: a POST /prompt is cut off before it was read.
        cut_after_accepting: a POST /prompt is accepted, and cut off before the answer.
        fail_prompts: a prompt raises in the first node it executes.
        out_of_memory: a prompt runs out of GPU memory in the first node it executes.
        mint_prompt_ids: the caller's `prompt_id` is ignored, as versions before 0.3.4x did.
        delay_s: every request is answered that much later, in real seconds.
    """

    cut_before_accepting: int | bool = False
    cut_after_accepting: int | bool = False
    fail_prompts: int | bool = False
    out_of_memory: int | bool = False
    mint_prompt_ids: bool = False
    delay_s: float = 0.0


class Faults(Settings):
    """The faults of one simulated server; they outlive its restarts, but for a freeze."""

    def __init__(self) -> None:
        super().__init__()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._hooks: Hooks | None = None
        self.refusing = False

    @property
    def frozen(self) -> bool:
        return not self._thawed.is_set()

    def take(self, name: str) -> bool:
        """Use up one of a counting fault; tell whether it strikes."""
        value: int | bool = getattr(self, name)
        if value and value is not True:
            setattr(self, name, value - 1)
        return bool(value)

    def freeze(self) -> None:
        """Stand still: TCP is accepted and nothing answered, the prompt stops in mid-step, websockets fall silent."""
        self._thawed.clear()
        if self._hooks:
            self._hooks.pause_sockets(True)

    def thaw(self) -> None:
        """Go on where `freeze` stopped; what was received meanwhile is answered now."""
        self._thawed.set()
        if self._hooks:
            self._hooks.pause_sockets(False)

    async def gate(self) -> None:
        """Wait while frozen."""
        await self._thawed.wait()

    async def refuse_connections(self) -> None:
        """Close the listening port; connections that stand stay. Raises RuntimeError unless started by itself."""
        await self._running().stop_listening()
        self.refusing = True

    async def accept_connections(self) -> None:
        """Open the listening port again."""
        await self._running().listen_again()
        self.refusing = False

    def drop_websockets(self) -> None:
        """Reset every websocket's connection, without a close frame."""
        self._running().cut_sockets()

    def attach(self, hooks: Hooks | None) -> None:
        """Connect with the server that runs now, or with none."""
        self._hooks = hooks
        self._thawed.set()
        self.refusing = False

    def as_dict(self) -> dict[str, Any]:
        """Return all settings, for the control port."""
        settings = {field.name: getattr(self, field.name) for field in fields(Settings)}
        return {**settings, "frozen": self.frozen, "refusing": self.refusing}

    def _running(self) -> Hooks:
        if self._hooks is None:
            raise RuntimeError("the simulated server is not running")
        return self._hooks


def cut(transport: asyncio.Transport | None) -> None:
    """Reset a connection: the peer gets an RST, and nothing that was still to be sent."""
    if transport is None or transport.is_closing():
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
