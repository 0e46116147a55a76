"""The HTTP surface: thin aiohttp handlers over the service."""
