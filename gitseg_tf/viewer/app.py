"""The routes of the page: scans by number in the list, planes by name and number; nothing is addressed by path."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from typing import Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from gitseg_tf.data.volume import Volume
from gitseg_tf.errors import DataError, GitsegError
from gitseg_tf.viewer.cache import Cache
from gitseg_tf.viewer.catalog import Library
from gitseg_tf.viewer.contours import Contours, labels_shown
from gitseg_tf.viewer.middleware import Guard
from gitseg_tf.viewer.planes import cut, describe
from gitseg_tf.viewer.predictions import Predictions

CACHE_BYTES = 1 << 30
SCRIPTS = ("pictures", "panes", "scan", "display", "list", "view")
_PAGE = {
    "/": ("index.html", "text/html"),
    "/view.css": ("view.css", "text/css"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in SCRIPTS},
}
_DARKEST, _BRIGHTEST = 2, 9  # indices into volume.PERCENTILES: 1 and 99.5
_Plane = Literal["axial", "coronal", "sagittal"]
_Layer = Literal["truth", "prediction"]


def make_app(library: Library, serves_host: Callable[[str], bool], cache_bytes: int = CACHE_BYTES) -> FastAPI:
    """Build the server.

    Args:
        library: the content of the page.
        serves_host: function that checks whether a request's Host header names this server, from `own_names`.
        cache_bytes: maximum size of the voxels and contours kept in memory.

    Returns:
        ASGI application; close app.state.predictions at the end.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Guard, serves_host=serves_host)
    cache = Cache(_bytes_of, cache_bytes)
    predictions = app.state.predictions = Predictions(library.entries, cache)

    @app.exception_handler(GitsegError)
    @app.exception_handler(OSError)
    def unreadable(request, error):
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    def no_such_address(request, error):
        return JSONResponse({"detail": "Not Found"}, 404)

    for address, (name, kind) in _PAGE.items():
        app.get(address)(_static(name, kind))

    @app.get("/api/scans")
    def scans():
        return {
            "name": library.name,
            "notes": library.notes,
            "labels": [{"name": label.name, "title": label.title, "color": label.color} for label in library.labels],
            "has_model": any(entry.model is not None for entry in library.entries),
            "scans": [
                {
                    "id": entry.id,
                    "case": entry.case,
                    "broken": entry.broken,
                    "annotated": entry.read_contours is not None,
                    "predicted": entry.model is not None,
                    "trained_on": entry.trained_on,
                    "scores": entry.scores,
                }
                for entry in library.entries
            ],
        }

    def entry_of(number: int):
        if not 0 <= number < len(library.entries):
            raise HTTPException(404)
        entry = library.entries[number]
        if entry.broken:
            raise DataError(entry.broken)
        return entry

    def volume_of(number: int) -> Volume:
        entry = entry_of(number)
        return cache.get(("volume", number), lambda: _with_page_dtype(entry.read_volume()))

    def contours_of(number: int, layer: str) -> Contours:
        entry = entry_of(number)
        if layer == "truth":
            if entry.read_contours is None:
                raise HTTPException(404)
            return cache.get(("truth", number), entry.read_contours)
        contours = cache.peek(("prediction", number))
        if contours is None:
            raise HTTPException(404)
        return contours

    @app.get("/api/scans/{number}")
    def scan(number: int):
        volume = volume_of(number)
        return {
            "planes": describe(volume),
            "numbers": volume.numbers,
            "spacing": volume.spacing,
            "kind": volume.voxels.dtype.name,
            "channels": [
                {
                    "name": library.channels[c] if c < len(library.channels) else f"channel {c + 1}",
                    "range": [float(percentiles[0]), float(percentiles[-1])],
                    "shades": [float(percentiles[_DARKEST]), float(percentiles[_BRIGHTEST])],
                }
                for c, percentiles in enumerate(volume.percentiles)
            ],
        }

    @app.get("/api/scans/{number}/prediction")
    def prediction(number: int):
        entry_of(number)
        state, line = predictions.ask(number)
        return {"state": state, "line": line}

    @app.get("/api/scans/{number}/{layer}/labels")
    def labels(number: int, layer: _Layer):
        contours = contours_of(number, layer)
        unannotated = np.flatnonzero(~contours.annotated[: len(library.labels)]).tolist()
        return labels_shown(contours.bits, len(library.labels)) | {"unannotated": unannotated}

    @app.get("/api/scans/{number}/image/{plane}/{index}")
    def image(number: int, plane: _Plane, index: int, channel: int = 0):
        volume = volume_of(number)
        if not 0 <= channel < volume.channels:
            raise HTTPException(404)
        voxels = volume.with_channels[..., channel]
        picture = _cut(voxels, volume, plane, index, min(0, float(volume.percentiles[channel, 0])))
        return _binary(picture.astype(picture.dtype.newbyteorder("<"), copy=False).tobytes())

    @app.get("/api/scans/{number}/{layer}/{plane}/{index}")
    def contours(number: int, layer: _Layer, plane: _Plane, index: int):
        volume = volume_of(number)
        pictures = [_cut(bits, volume, plane, index) for bits in contours_of(number, layer).bits]
        return _binary(gzip.compress(b"".join(p.tobytes() for p in pictures), 1), {"Content-Encoding": "gzip"})

    return app


def _static(name: str, kind: str) -> Callable[[], Response]:
    content = resources.files(__package__).joinpath("page", name).read_bytes()
    return lambda: Response(content, media_type=f"{kind}; charset=utf-8")


def _binary(content: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(content, media_type="application/octet-stream", headers=headers)


def _cut(voxels: np.ndarray, volume: Volume, plane: str, index: int, fill: float = 0) -> np.ndarray:
    try:
        return cut(voxels, volume.numbers, plane, index, fill=fill)
    except IndexError:
        raise HTTPException(404) from None


def _with_page_dtype(volume: Volume) -> Volume:
    """Convert a volume to a dtype that the page supports: uint16, int16 or float32."""
    voxels = volume.voxels
    if voxels.dtype.kind in "iu":
        fits = next((t for t in (np.uint16, np.int16) if _within(voxels, np.iinfo(t))), np.float32)
    else:
        fits = np.float32
    return replace(
        volume, voxels=voxels.astype(fits, copy=False), stored_statistics=(volume.percentiles, volume.moments)
    )


def _within(voxels: np.ndarray, limits: np.iinfo) -> bool:
    possible = np.iinfo(voxels.dtype)
    if limits.min <= possible.min and possible.max <= limits.max:
        return True
    return bool(limits.min <= voxels.min() and voxels.max() <= limits.max)


def _bytes_of(value: Volume | Contours) -> int:
    return value.voxels.nbytes if isinstance(value, Volume) else value.nbytes
