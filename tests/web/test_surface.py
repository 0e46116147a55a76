"""The table of the surface, the page that shows it, and the routes of real servers are about the same."""

import re
from pathlib import Path

import pytest

from comfyproxy.web.passthrough import home_handler
from comfyproxy.web.surface import ROUTES, SURFACE, How

PAGE = Path(__file__).parents[2] / "docs" / "surface.md"
ROUTES_OF = Path(__file__).parents[1] / "data" / "routes"
# Static files and what else falls to the home backend without a row of its own.
CATCH_ALL = "/{path:.*}"


def _table() -> set[tuple[str, str, str]]:
    found = set()
    for row in SURFACE:
        paths = {(route.method, route.path) for route in row.routes}
        for route in row.routes:
            if route.path.startswith("/api/") and (route.method, route.path.removeprefix("/api")) in paths:
                continue  # the twin
            found.add((row.group, f"{route.method} {route.path}", str(row.how)))
    return found


def _shown() -> set[tuple[str, str, str]]:
    found = set()
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1].startswith("`"):
            found |= {(cells[0], route, cells[2]) for route in re.findall(r"`([^`]+)`", cells[1])}
    return found


def test_the_page_shows_the_table() -> None:
    assert _shown() == _table()


def test_no_route_stands_in_two_rows() -> None:
    routes = [(route.method, route.path) for route in ROUTES]
    assert len(routes) == len(set(routes))


@pytest.mark.parametrize("version", ["0.3.64", "0.25.0"])
def test_every_route_of_a_real_server_is_in_the_table(version: str) -> None:
    known = {(route.method, re.sub(r"\{[^}]*\}", "{}", route.path)) for row in SURFACE for route in row.routes}
    only_api = False
    for line in (ROUTES_OF / f"routes-{version}.txt").read_text().splitlines():
        if line.startswith("#"):
            only_api = only_api or "only under /api" in line
            continue
        method, path = line.split()[:2]
        if "static files" in line:
            path = "/" if path == "/" else f"{path}/{{}}"
        wanted = re.sub(r"\{[^}]*\}", "{}", path)
        assert (method, wanted) in known, line
        has_twin = not only_api and "no /api twin" not in line
        assert ((method, f"/api{wanted}") in known) or not has_twin, line


def test_what_the_home_backend_serves_is_passed_through_and_nothing_else_is() -> None:
    for row in SURFACE:
        for route in row.routes:
            assert (route.handler is home_handler) == (row.how is How.HOME), route.path
    assert ROUTES[-1].path == CATCH_ALL
    assert ROUTES[-1].handler is home_handler
