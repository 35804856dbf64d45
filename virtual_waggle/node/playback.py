# SPDX-License-Identifier: Apache-2.0
"""Stand-ins of cameras over HTTP, at the addresses of 2020's virtual-waggle.

    /bottom/image.jpg  /top/image.jpg       a still; the user's pictures change every second
    /bottom/live.mp4   /top/live.mp4        the user's film (with ranges), else a film without end
    /bottom/live.mjpg  /top/live.mjpg       the same as MJPEG (multipart/x-mixed-replace)
    /blank.jpg         /noise.jpg           black; noise, another each time

The user's pictures and films lie in ``<folder>/<camera>/``, pictures also in ``<folder>/<camera>/images/``.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from groundwork.program import run_program
from groundwork.settings import whole_number
from virtual_waggle import env_file
from virtual_waggle.broker_client import parse_address
from virtual_waggle.env_file import Variable
from virtual_waggle.node import mp4, pictures
from virtual_waggle.node.pictures import Camera, Unreadable

logger = logging.getLogger(__name__)

CAMERAS = ("bottom", "top")
MOST_REQUESTS = 64  # under way at once
_PATIENCE = 20.0  # seconds that a reader may take for one picture
_SHUTDOWN = 2.0  # seconds
_BOUNDARY = "picture"
_FRESH = {"Cache-Control": "no-store"}

TABLE = (
    Variable(
        "WAGGLE_PLAYBACK",
        "where the playback server listens, as host:port",
        lambda text: parse_address(text, "address"),
        "0.0.0.0:8090",
    ),
    Variable("WAGGLE_PLAYBACK_FOLDER", "the folder of the user's pictures and films", Path, "/playback"),
    Variable("WAGGLE_PLAYBACK_RATE", "pictures a second", whole_number(1, 30), "10"),
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def main() -> int:
    """Serve until a signal comes."""
    given = env_file.from_environment(os.environ, TABLE)
    host, port = given["WAGGLE_PLAYBACK"]
    application = make(given["WAGGLE_PLAYBACK_FOLDER"], given["WAGGLE_PLAYBACK_RATE"])
    # A request that is no HTTP is its sender's fault, and answered so; no trace of it in our log.
    logging.getLogger("aiohttp.server").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
    )
    web.run_app(application, host=host, port=port, shutdown_timeout=_SHUTDOWN, access_log=None, print=None)
    return 0


def make(folder: Path, rate: int) -> web.Application:
    """The server; ``rate`` is in pictures a second."""
    ended = asyncio.Event()
    active = 0

    @web.middleware
    async def limited(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal active
        if active >= MOST_REQUESTS:
            raise web.HTTPServiceUnavailable(
                text=f"{MOST_REQUESTS} requests are under way\n", headers={"Retry-After": "5"}
            )
        active += 1
        try:
            return await handler(request)
        except Unreadable as error:
            raise web.HTTPInternalServerError(text=f"{error}\n") from None
        finally:
            active -= 1

    async def still(request: web.Request) -> web.StreamResponse:
        picture = await asyncio.to_thread(pictures.shown, camera(request), time.time(), rate)
        return web.Response(body=picture, content_type="image/jpeg", headers=_FRESH)

    async def live_mp4(request: web.Request) -> web.StreamResponse:
        path = pictures.film(camera(request).folder)
        if path is not None:
            return web.FileResponse(path, headers={"Content-Type": "video/mp4"})
        return await stream(request, "video/mp4", film_of(camera(request), rate))

    async def live_mjpg(request: web.Request) -> web.StreamResponse:
        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"
        return await stream(request, kind, parts_of(camera(request), rate))

    async def stream(request: web.Request, kind: str, chunks: AsyncGenerator[bytes, None]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": kind, **_FRESH})
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    if not response.prepared:
                        await response.prepare(request)
                    if ended.is_set() or request.method == "HEAD":
                        break
                    await asyncio.wait_for(response.write(chunk), _PATIENCE)
        except asyncio.TimeoutError:
            logger.warning("%s takes too long for a picture; its stream is cut off", request.remote)
            if request.transport is not None:
                request.transport.abort()
        except ConnectionResetError:
            pass  # the reader has gone
        return response

    def camera(request: web.Request) -> Camera:
        name = request.match_info.get("camera", CAMERAS[0])
        return Camera(name, folder / name)

    async def blank(request: web.Request) -> web.StreamResponse:
        return web.Response(body=pictures.blank(), content_type="image/jpeg")

    async def noise(request: web.Request) -> web.StreamResponse:
        picture = await asyncio.to_thread(pictures.noise)
        return web.Response(body=picture, content_type="image/jpeg", headers=_FRESH)

    async def index(request: web.Request) -> web.StreamResponse:
        return web.Response(text="".join(f"{path}\n" for path in paths))

    async def end(application: web.Application) -> None:
        ended.set()

    which = f"{{camera:{'|'.join(CAMERAS)}}}"
    application = web.Application(middlewares=[limited], client_max_size=1 << 10)
    application.router.add_get("/", index)
    application.router.add_get("/blank.jpg", blank)
    application.router.add_get("/noise.jpg", noise)
    application.router.add_get("/live", live_mp4)  # the bottom camera's, as 2020's ffserver had it
    for name, handler in (("image.jpg", still), ("live.mp4", live_mp4), ("live.mjpg", live_mjpg)):
        application.router.add_get(f"/{which}/{name}", handler)
    paths = ["/blank.jpg", "/noise.jpg"]
    paths += [f"/{name}/{what}" for name in CAMERAS for what in ("image.jpg", "live.mp4", "live.mjpg")]
    application.on_shutdown.append(end)
    return application


async def shots(camera: Camera, rate: int) -> AsyncGenerator[bytes, None]:
    """The camera's pictures, one after the other, at their rate; those that can't be read are passed over."""
    while True:
        try:
            yield await asyncio.to_thread(pictures.shown, camera, time.time(), rate)
        except Unreadable as error:
            logger.warning("%s: %s", camera.name, error)
        await asyncio.sleep(1 / rate)


async def film_of(camera: Camera, rate: int) -> AsyncGenerator[bytes, None]:
    """The camera's pictures as a film without end."""
    number = 0
    async for picture in shots(camera, rate):
        begin = mp4.beginning(*pictures.size(picture)) if number == 0 else b""
        yield begin + mp4.fragment(number, picture, rate)
        number += 1


async def parts_of(camera: Camera, rate: int) -> AsyncGenerator[bytes, None]:
    """The camera's pictures as parts of a multipart document."""
    async for picture in shots(camera, rate):
        head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
        yield head.encode() + picture + b"\r\n"


if __name__ == "__main__":
    run_program(main)
