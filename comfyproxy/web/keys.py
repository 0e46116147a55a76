"""What handlers find in the application."""

from aiohttp import web

from comfyproxy.service.files import Files
from comfyproxy.service.fleet import Fleet

FLEET = web.AppKey("fleet", Fleet)
FILES = web.AppKey("files", Files)
