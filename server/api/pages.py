"""The page at ``/``, and the browser's client."""

import mimetypes
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from server.http.problems import Problem
from server.http.routes import PublicMount

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "server" / "pages"
BROWSER = ROOT / "protocol" / "browser"

# The module's first guess reads the system's files, which would block the loop for 20 ms.
mimetypes.init()


class PageFiles(StaticFiles):
    """The page's files; a path ending in a slash is not found."""

    def get_path(self, scope: Scope) -> str:
        """The path of a file; 404 for a slash at its end."""
        if scope["path"].endswith("/"):
            raise HTTPException(404)
        return super().get_path(scope)


async def index(_: Request) -> Response:
    """The page to try Taximeter."""
    return FileResponse(PAGES / "index.html", media_type="text/html")


async def client(request: Request) -> Response:
    """The modules of the browser's client, and their types.

    Pages of other origins may import them.
    """
    name = request.path_params["name"]
    media = "text/javascript" if name.endswith(".js") else "text/plain"
    headers = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"}
    is_module = name.endswith((".js", ".d.ts")) and "/" not in name
    if not (is_module and (BROWSER / name).is_file()):
        raise Problem(404, "not_found", "there is no such file")
    return FileResponse(BROWSER / name, headers=headers, media_type=media)


ROUTES = [
    Route("/", index),
    Route("/client/{name}", client),
    PublicMount("/pages", PageFiles(directory=PAGES)),
]
