"""The pages' addresses: scans by their number in the list, planes by name and number; nothing by path."""

import gzip
from collections.abc import Callable
from importlib import resources
from typing import Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from gitseg_tf.data.scans import ORGAN_COLORS, ORGANS
from gitseg_tf.errors import InputError
from gitseg_tf.viewer.cache import Cache
from gitseg_tf.viewer.guard import Guard
from gitseg_tf.viewer.library import Library, Voxels
from gitseg_tf.viewer.planes import cut, describe, organs_shown
from gitseg_tf.viewer.predictions import Predictions

CACHE_BYTES = 1 << 30
_PAGE = {
    "/": ("index.html", "text/html"),
    "/view.css": ("view.css", "text/css"),
    "/view.js": ("view.js", "text/javascript"),
}
_DARKEST, _BRIGHTEST = 2, 9  # of records.PERCENTILES: 1 and 99.5
_Plane = Literal["axial", "coronal", "sagittal"]
_Layer = Literal["truth", "prediction"]


def make_app(library: Library, serves_host: Callable[[str], bool], cache_bytes: int = CACHE_BYTES) -> FastAPI:
    """Build the server.

    Args:
        library: what it shows.
        serves_host: whether a request's Host (without port) is one of this server's names.
        cache_bytes: of voxels and contours that stay in memory.

    Returns:
        ASGI application; app.state.predictions is to be closed at the end.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Guard, serves_host=serves_host)
    cache = Cache(_bytes_of, cache_bytes)
    predictions = app.state.predictions = Predictions(library.entries, cache)

    @app.exception_handler(InputError)
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
            "organs": [{"name": organ, "color": ORGAN_COLORS[organ]} for organ in ORGANS],
            "has_model": any(entry.model is not None for entry in library.entries),
            "scans": [
                {
                    "id": entry.id,
                    "case": entry.case,
                    "broken": entry.broken,
                    "labelled": entry.read_contours is not None,
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
            raise InputError(entry.broken)
        return entry

    def voxels_of(number: int) -> Voxels:
        entry = entry_of(number)
        return cache.get(("voxels", number), entry.read_voxels)

    def bits_of(number: int, layer: str) -> np.ndarray:
        entry = entry_of(number)
        if layer == "truth":
            if entry.read_contours is None:
                raise HTTPException(404)
            return cache.get(("truth", number), entry.read_contours)
        bits = cache.peek(("prediction", number))
        if bits is None:
            raise HTTPException(404)
        return bits

    @app.get("/api/scans/{number}")
    def scan(number: int):
        voxels = voxels_of(number)
        return {
            "planes": describe(voxels),
            "numbers": voxels.numbers,
            "spacing": voxels.spacing,
            "range": [int(voxels.percentiles[0]), int(voxels.percentiles[-1])],
            "shades": [int(voxels.percentiles[_DARKEST]), int(voxels.percentiles[_BRIGHTEST])],
        }

    @app.get("/api/scans/{number}/prediction")
    def prediction(number: int):
        entry_of(number)
        state, line = predictions.ask(number)
        return {"state": state, "line": line}

    @app.get("/api/scans/{number}/{layer}/organs")
    def organs(number: int, layer: _Layer):
        return organs_shown(bits_of(number, layer))

    @app.get("/api/scans/{number}/image/{plane}/{index}")
    def image(number: int, plane: _Plane, index: int):
        voxels = voxels_of(number)
        return _binary(_cut(voxels.image, voxels, plane, index).astype("<u2", copy=False).tobytes())

    @app.get("/api/scans/{number}/{layer}/{plane}/{index}")
    def contours(number: int, layer: _Layer, plane: _Plane, index: int):
        picture = _cut(bits_of(number, layer), voxels_of(number), plane, index)
        return _binary(gzip.compress(picture.tobytes(), 1), {"Content-Encoding": "gzip"})

    return app


def _static(name: str, kind: str) -> Callable[[], Response]:
    content = resources.files(__package__).joinpath("page", name).read_bytes()
    return lambda: Response(content, media_type=f"{kind}; charset=utf-8")


def _binary(content: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(content, media_type="application/octet-stream", headers=headers)


def _cut(volume: np.ndarray, voxels: Voxels, plane: str, index: int) -> np.ndarray:
    try:
        return cut(volume, voxels.numbers, plane, index)
    except IndexError:
        raise HTTPException(404) from None


def _bytes_of(value: Voxels | np.ndarray) -> int:
    return value.image.nbytes if isinstance(value, Voxels) else value.nbytes
