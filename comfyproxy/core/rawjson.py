"""JSON taken apart without decoding what is inside: big values stay the bytes they came as.

Python reads and writes NaN and lone surrogates, which are not JSON, and so does ComfyUI; where they occur, the slow way
through the standard library keeps them.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_any_decoder = msgspec.json.Decoder()


def members(raw: bytes) -> dict[str, bytes]:
    """Return the raw values of an object by key, in order; empty where it is JSON of another kind.

    Raises ValueError if it is no JSON, or nested too deeply to be read.
    """
    try:
        return {key: bytes(value) for key, value in _object_decoder.decode(raw).items()}
    except msgspec.ValidationError:
        return {}
    except (msgspec.DecodeError, RecursionError):
        value = _loads(raw)
        return {key: encode(item) for key, item in value.items()} if isinstance(value, dict) else {}


def items(raw: bytes) -> list[bytes]:
    """Return the raw items of an array; empty where it is JSON of another kind. Raises ValueError if it is no JSON."""
    try:
        return [bytes(value) for value in _array_decoder.decode(raw)]
    except msgspec.ValidationError:
        return []
    except (msgspec.DecodeError, RecursionError):
        value = _loads(raw)
        return [encode(item) for item in value] if isinstance(value, list) else []


def decode(raw: bytes) -> Any:
    """Decode a value. Raises ValueError if it is no JSON."""
    try:
        return _any_decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return _loads(raw)


def encode(value: Any) -> bytes:
    """Encode a value as ComfyUI does."""
    return json.dumps(value).encode()


def number(value: float) -> bytes:
    """Encode a queue number: as an integer where it is one."""
    return encode(int(value) if value.is_integer() else value)


def obj(values: Mapping[str, bytes]) -> bytes:
    """Join raw values to an object."""
    return b"{" + b", ".join(encode(key) + b": " + raw for key, raw in values.items()) + b"}"


def array(values: Iterable[bytes]) -> bytes:
    """Join raw values to an array."""
    return b"[" + b", ".join(values) + b"]"


def _loads(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
