"""Draw what the training augmentations do to a few images.

    python -m benchmarks.augmentations --output docs/augmentations.png [--source images] [--draws 6] [--canvas 192]

A row an image: first fitted into the canvas, then as many draws. The image's box is outlined: black inside it belongs
to the image (perspective, erasing), black outside is padding. Without --source the images are scikit-learn's two
photos, a part of one, and a drawn test chart; all may be redistributed.
"""

import argparse
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_sample_image

from benchmarks.data import read_images
from datamodules.transforms.augment import augment
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.images import decode_image, fit_on_canvas
from mambaeye.geometry.box import Box

OUTLINE = (90, 200, 255)  # RGB
GAP = 6  # pixels between pictures


def draw_chart(height: int, width: int) -> np.ndarray:
    """Draw colour bars, a gray ramp, a checkerboard and circles: (height, width, 3) uint8 RGB."""
    chart = np.full((height, width, 3), 235, np.uint8)
    colors = [(192, 192, 192), (192, 192, 0), (0, 192, 192), (0, 192, 0), (192, 0, 192), (192, 0, 0), (0, 0, 192)]
    for number, color in enumerate(colors):
        chart[: height // 3, number * width // 7 : (number + 1) * width // 7] = color
    chart[height // 3 : height // 2] = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    rows, cols = np.indices((height - height // 2, width // 2)) // 15
    chart[height // 2 :, : width // 2] = 255 * ((rows + cols) % 2)[..., None]
    for radius in range(10, 90, 14):
        cv2.circle(chart, (3 * width // 4, 3 * height // 4), radius, (30, 30, 30), 2, cv2.LINE_AA)
    cv2.putText(chart, "R", (width // 2 + 10, height - 12), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (200, 0, 0), 3, cv2.LINE_AA)
    return chart


def redistributable_images() -> list[bytes]:
    """Return four encoded images that may be shown anywhere."""
    china, flower = (load_sample_image(f"{name}.jpg") for name in ("china", "flower"))  # (427, 640, 3) each
    images = [china, flower, china[80:400, 380:600], draw_chart(360, 480)]
    return [cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes() for image in images]


def outlined(canvas: np.ndarray, box: Box) -> np.ndarray:
    """Return a copy of the canvas with the box drawn around the image."""
    corner, opposite = (box.col, box.row), (box.col + box.width - 1, box.row + box.height - 1)
    return cv2.rectangle(canvas.copy(), corner, opposite, OUTLINE, 2)


def row_of(data: bytes, number: int, draws: int, side: int) -> list[np.ndarray]:
    """Return one image fitted, then augmented that often; each (side, side, 3)."""
    what = f"image {number}"
    pictures = [outlined(*fit_on_canvas(decode_image(data, what), side))]
    for draw in range(draws):
        rng = np.random.default_rng((number, draw))
        pictures.append(outlined(*augment(data, side, Augmentation(), rng, what)))
    return pictures


def grid(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Put the pictures side by side, with white gaps: one (H, W, 3) image."""
    framed = [
        [cv2.copyMakeBorder(picture, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255)) for picture in row]
        for row in rows
    ]
    return cv2.vconcat([cv2.hconcat(row) for row in framed])[:-GAP, :-GAP]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the picture to write, a .png")
    parser.add_argument("--source", type=Path, help="a tar or folder of images, instead of those that come along")
    parser.add_argument("--images", type=int, default=4, help="how many of the source's, spread evenly")
    parser.add_argument("--draws", type=int, default=6, help="augmented pictures an image")
    parser.add_argument("--canvas", type=int, default=192, help="side of each picture, pixels")
    args = parser.parse_args()
    if args.source:
        images = list(islice(read_images(args.source), 10_000))
        images = images[:: max(1, len(images) // args.images)][: args.images]
    else:
        images = redistributable_images()
    picture = grid([row_of(data, number, args.draws, args.canvas) for number, data in enumerate(images)])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.output), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
