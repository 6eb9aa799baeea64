"""The page at ``/``, and the browser's client."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "server" / "pages"
BROWSER = ROOT / "protocol" / "browser"

# Everything comes from here and nothing is inline, so nothing else may run.
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


async def index(_: Request) -> Response:
    """The page to try Taximeter."""
    return FileResponse(PAGES / "index.html", headers={"Content-Security-Policy": POLICY})


async def client(request: Request) -> Response:
    """The browser's client and its types; pages of other origins may import it."""
    name = request.path_params["name"]
    media = "text/javascript" if name.endswith(".js") else "text/plain"
    headers = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-cache"}
    if name not in {"taximeter.js", "taximeter.d.ts"} and not (
        name.endswith(".js") and "/" not in name and (BROWSER / name).is_file()
    ):
        return Response(status_code=404)
    return FileResponse(BROWSER / name, headers=headers, media_type=media)


ROUTES = [
    Route("/", index),
    Route("/client/{name}", client),
    Mount("/pages", StaticFiles(directory=PAGES)),
]
