"""What handlers find in the application."""

from collections.abc import Callable

from aiohttp import web

from comfyproxy.core.ports import JobStore
from comfyproxy.metrics import Metrics
from comfyproxy.service.catalogs import Catalogs
from comfyproxy.service.drain import Drains
from comfyproxy.service.explaining import Explainer
from comfyproxy.service.files import Files
from comfyproxy.service.fleet import Fleet
from comfyproxy.service.keeping import Keeper
from comfyproxy.service.logs import LogSubscriptions
from comfyproxy.service.mirroring import Mirror
from comfyproxy.service.queries import Queries
from comfyproxy.service.reloading import Reloads
from comfyproxy.web.seams import Board, Control, Submissions

FLEET = web.AppKey("fleet", Fleet)
FILES = web.AppKey("files", Files)
QUERIES = web.AppKey("queries", Queries)
STORE: web.AppKey[JobStore] = web.AppKey("store")
CONTROL: web.AppKey[Control] = web.AppKey("control")
DRAINS = web.AppKey("drains", Drains)
EXPLAINER = web.AppKey("explainer", Explainer)
MIRROR = web.AppKey("mirror", Mirror)
CATALOGS = web.AppKey("catalogs", Catalogs)
KEEPER = web.AppKey("keeper", Keeper)
LOGS = web.AppKey("logs", LogSubscriptions)
SUBMISSIONS: web.AppKey[Submissions] = web.AppKey("submissions")
MAX_BODY_BYTES = web.AppKey("max_body_bytes", int)  # of POST /prompt
BOARD: web.AppKey[Board] = web.AppKey("board")
RELOADS = web.AppKey("reloads", Reloads)
CANCEL_ROUTES_ENABLED: web.AppKey[Callable[[], bool]] = web.AppKey("cancel_routes_enabled")
WALL_CLOCK: web.AppKey[Callable[[], float]] = web.AppKey("wall_clock")  # seconds since the epoch
METRICS = web.AppKey("metrics", Metrics)
