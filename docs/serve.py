"""Retrieval as a service: an image of one domain in, the nearest items of the other domain out.

iiae export RUN --graphs shared_x shared_y --input uint8
iiae embed RUN/onnx/shared_y.onnx gallery --out gallery.npy      # gallery: a folder of images of y, what may be found
python docs/serve.py RUN/onnx/shared_x.onnx gallery.npy gallery  # pip install 'iiae_fast[serve]'
curl --data-binary @photo.png 'http://localhost:8000/nearest?k=5'
"""

import argparse
from pathlib import Path
from typing import Annotated

import numpy as np
import uvicorn
from fastapi import Body, FastAPI, Query, Request
from fastapi.responses import JSONResponse

from iiae_fast import export
from iiae_fast.data.images import list_images, read_image
from iiae_fast.errors import InputError
from iiae_fast.retrieval import FlatIndex


def create_app(encoder: Path, database: Path, gallery: Path) -> FastAPI:
    """The service; whatever does not fit together is an InputError now, not at the first request."""
    session, index = export.load(encoder), FlatIndex(np.load(database))
    (taken,), items = session.inputs, [path.name for path in list_images(gallery)]
    if taken.dtype != "uint8" or session.outputs[0].shape[1] != index.dim or len(items) != len(index):
        given = f"{encoder} ({taken.dtype} in, {session.outputs[0].shape[1]} out), {database} {len(index)} × {index.dim}"
        raise InputError(f"{given} and {len(items)} images in {gallery} do not fit together")
    session.warm_up()
    app = FastAPI(title="Cross-domain retrieval")

    @app.exception_handler(InputError)
    def refuse(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=422)

    @app.post("/nearest")
    def nearest(
        image: Annotated[bytes, Body(media_type="image/*")], k: Annotated[int, Query(ge=1, le=len(index))] = 1
    ) -> list[dict[str, str | float]]:
        pixels = read_image(image, taken.shape[1])  # (3, H, W); the graph takes (B, H, W, 3) and normalizes it itself
        (distances,), (rows,) = index.search(session(pixels.transpose(1, 2, 0)[None]), k)
        return [{"item": items[row], "distance": float(distance)} for row, distance in zip(rows, distances)]

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("encoder", "database", "gallery"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(create_app(options.encoder, options.database, options.gallery), host="127.0.0.1", port=options.port)
