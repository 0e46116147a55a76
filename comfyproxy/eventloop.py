"""What a command that runs until it is told to stop needs: a fast event loop, and signals that reach it."""

import asyncio
import os
import signal
from collections.abc import Callable

# Wrappers such as `timeout` and npm pass a signal on that the terminal or the process group has delivered already.
_ECHO_S = 0.5


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop; where there is none (Windows, PyPy), the standard library's."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` at SIGINT or SIGTERM; another one, later, kills the process as if nobody had asked it to be polite."""
    loop = asyncio.get_running_loop()

    def asked() -> None:
        if not stop.is_set():
            stop.set()
            loop.call_later(_ECHO_S, give_back)

    def give_back() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)  # Python's own would raise KeyboardInterrupt amid the stopping

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, asked)
        except NotImplementedError:  # Windows: Ctrl-C is a KeyboardInterrupt
            continue


def reload_on_hangup(wanted: asyncio.Event, stop: asyncio.Event) -> None:
    """Set `wanted` at SIGHUP, as services understand it; and `stop` where it says that our terminal has been closed."""
    number = getattr(signal, "SIGHUP", None)
    if number is None:  # Windows
        return
    # Under nohup, which ignores the signal, nobody wants the end of the terminal to be ours.
    has_terminal = os.isatty(0) and signal.getsignal(number) is not signal.SIG_IGN

    def hung_up() -> None:
        (stop if has_terminal and _terminal_is_gone() else wanted).set()

    asyncio.get_running_loop().add_signal_handler(number, hung_up)


def _terminal_is_gone() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return True
    return False
