"""What the fleet has, as one server would say it: merged, encoded and compressed once, and served from memory."""

import asyncio
import gzip
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from comfyproxy.core import merging, rawjson
from comfyproxy.core.errors import UpstreamFailed
from comfyproxy.service import sources as paths
from comfyproxy.service.contents import LONG_BYTES, Content, Listing
from comfyproxy.service.fleet import Backend, Fleet
from comfyproxy.service.recent import Recent
from comfyproxy.service.sources import MAX_PATHS, Refusal, Sources

# Compressing less costs more than it saves: it fits into one packet as it is.
WORTH_COMPRESSING_BYTES = 1400

_EMPTY = b"{}"


class Document:
    """JSON that is ready to be sent.

    Attributes:
        etag: names this content, whoever has put it together.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.etag = hashlib.blake2b(body, digest_size=16).hexdigest()
        self._gzipped: bytes | None = None
        self._turn = asyncio.Lock()

    @property
    def is_compressible(self) -> bool:
        """Whether it pays to send it compressed."""
        return len(self.body) >= WORTH_COMPRESSING_BYTES

    async def gzipped(self) -> bytes:
        """Return it compressed; that is done once."""
        async with self._turn:
            if self._gzipped is None:
                self._gzipped = await asyncio.to_thread(gzip.compress, self.body, mtime=0)
            return self._gzipped


@dataclass(slots=True, eq=False)
class _Built:
    """What was merged last, of what, and until when nobody needs to look whether it is still true."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    document: Document | None = None
    contents: tuple[Content, ...] = ()
    generation: int = -1
    fresh_until_s: float = -math.inf


# However many prompts come that can run nowhere, the backends are asked no more often because of them.
LOOK_AGAIN_S = 1.0


class Catalogs:
    """Merged answers by path.

    Args:
        features: returns what the proxy answers to a client's feature flags.
        now: seconds, monotonic.
        max_age_s: older answers are not given away before the backends were asked again.
    """

    def __init__(
        self,
        fleet: Fleet,
        sources: Sources,
        features: Callable[[], dict[str, Any]],
        *,
        now: Callable[[], float],
        max_age_s: float,
    ) -> None:
        self._fleet, self._sources, self._features = fleet, sources, features
        self._now, self.max_age_s = now, max_age_s
        self._looked_s = -math.inf
        self._built: Recent[_Built] = Recent(MAX_PATHS)

    async def look_again(self) -> None:
        """Ask the healthy backends what they can run, unless they were asked a moment ago."""
        if self._now() - self._looked_s < LOOK_AGAIN_S:
            return
        self._looked_s = self._now()
        await self._sources.refresh(paths.OBJECT_INFO, self._healthy(), max_age_s=self.max_age_s)

    async def object_info(self) -> Document | Refusal:
        """Return the node classes of all backends. Like all others, raises NoBackend and UpstreamFailed."""
        return await self._merged(paths.OBJECT_INFO, merging.unite_classes)

    async def object_info_of(self, node_class: str) -> Document | Refusal:
        """Return one node class: `{}` where no backend has it."""
        catalogs = [backend.catalog for backend in self._healthy()]
        if all(catalog is not None and node_class not in catalog.classes for catalog in catalogs):
            return Document(_EMPTY)
        path = f"{paths.OBJECT_INFO}/{quote(node_class, safe='')}"
        return await self._merged(path, merging.unite_class(node_class))

    async def model_kinds(self) -> Document | Refusal:
        """Return the kinds of models that there are."""
        return await self._merged("/models", merging.unite_names)

    async def models(self, kind: str) -> Document | Refusal:
        """Return the names of models of a kind; refused only where no backend knows the kind."""
        return await self._merged(_models(kind), merging.unite_names)

    async def embeddings(self) -> Document | Refusal:
        """Return the names of embeddings, without their extensions."""
        return await self._merged("/embeddings", merging.unite_names)

    async def model_folders(self) -> Document | Refusal:
        """Return the kinds of models with their folders."""
        return await self._merged("/experiment/models", merging.unite_folders)

    async def model_files(self, kind: str) -> Document | Refusal:
        """Return the models of a kind as files."""
        return await self._merged(_files(kind), merging.unite_models)

    async def system_stats(self) -> Document | Refusal:
        """Return the home backend's system, and the devices of all backends."""
        return await self._merged(paths.SYSTEM_STATS, merging.unite_stats)

    async def features(self) -> Document | Refusal:
        """Return what is answered to feature flags, too; or how a home backend refuses that is too old to say."""
        return await self._merged(paths.FEATURES, self._own_features)

    async def holders_of_model(self, kind: str, name: str) -> list[Backend]:
        """Return the backends that have a model, home first if it has; home alone where none has."""
        return await self._holders(_models(kind), name, 0)

    async def holders_of_file(self, kind: str, name: str, path_index: int) -> list[Backend]:
        """Return the backends that have a model in that one of their folders, by its name with any extension."""
        return await self._holders(_files(kind), name, path_index)

    async def _merged(self, path: str, unite: Callable[[Sequence[Any]], bytes]) -> Document | Refusal:
        built = self._built.get(path)
        if built is None:
            built = _Built()
            self._built.put(path, built)
        elif built.document is not None and self._is_current(built):
            return built.document
        backends = await self._refresh(path)
        async with built.turn:
            generation = self._sources.generation
            contents = list(self._sources.contents(path, backends).values())
            if not contents:
                return self._refusal(path, backends)
            if path != paths.SYSTEM_STATS:  # equal devices are as many
                contents = list({id(content): content for content in contents}.values())
            if built.document is None or not _are_same(built.contents, contents):
                size = sum(len(content.body) if isinstance(content, Listing) else LONG_BYTES for content in contents)
                values = [content.body if isinstance(content, Listing) else content for content in contents]
                built.document = await self._sources.worker.run(size, lambda: Document(unite(values)))
                built.contents = tuple(contents)
            built.generation = generation
            built.fresh_until_s = self._sources.fresh_until_s(path, backends, max_age_s=self.max_age_s)
            return built.document

    def _is_current(self, built: _Built) -> bool:
        return built.generation == self._sources.generation and self._now() < built.fresh_until_s

    async def _refresh(self, path: str) -> list[Backend]:
        """Return the backends whose answers count, once they have been asked lately. Raises NoBackend."""
        while True:
            backends = self._healthy() if path != paths.FEATURES else [self._fleet.home()]
            await self._sources.refresh(path, backends, max_age_s=self.max_age_s)
            # One that did not answer may be out now, and another one be home.
            left = self._healthy() if path != paths.FEATURES else [self._fleet.home()]
            if all(backend in backends for backend in left):
                return left

    def _healthy(self) -> list[Backend]:
        """Return the healthy backends, home first. Raises NoBackend."""
        home = self._fleet.home()
        return [home, *(backend for backend in self._fleet if backend.health.healthy and backend is not home)]

    def _refusal(self, path: str, backends: Sequence[Backend]) -> Refusal:
        for refusal in self._sources.refusals(path, backends).values():
            return refusal
        raise UpstreamFailed("No ComfyUI backend answered", details=f"GET {path}: {', '.join(b.id for b in backends)}")

    async def _holders(self, path: str, name: str, path_index: int) -> list[Backend]:
        backends = await self._refresh(path)
        contents = self._sources.contents(path, backends)
        refused = self._sources.refusals(path, backends)
        holders = []
        for backend in backends:
            content = contents.get(backend.id)
            if content is None and backend.id not in refused:
                holders.append(backend)  # nobody knows
            elif isinstance(content, Listing) and content.has(name, path_index):
                holders.append(backend)
        return holders or backends[:1]

    def _own_features(self, bodies: Sequence[bytes]) -> bytes:
        features = self._features()
        try:
            is_all = rawjson.decode(bodies[0]) == features
        except ValueError:
            is_all = False
        return bodies[0] if is_all else rawjson.encode(features)


def _models(kind: str) -> str:
    return f"/models/{quote(kind, safe='')}"


def _files(kind: str) -> str:
    return f"/experiment/models/{quote(kind, safe='')}"


def _are_same(one: Sequence[Content], other: Sequence[Content]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
