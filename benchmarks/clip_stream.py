"""Measure how fast a clip is looked at as it arrives, and what memory that takes by its length.

    python -m benchmarks.clip_stream [--frames 100 3000] [--encoders clips.yaml tiny]

Videos of 320 x 240 pixels (MPEG-4, 25 frames a second) are made, and each is looked at by a process of its own, on one
core: frames are decoded one at a time, glimpses of 2 frames are placed as the scan arriving does, 32 for every 8
frames, and the state is carried. Encoders have random weights: the sizes of configs/clips.yaml, and the paper's tiny.
A line each: frames and glimpses a second of processor time, FFmpeg's included, from the first glimpses to the last, and
the most memory that the process took.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch

from datamodules.transforms.headers import PixelLimit
from datamodules.views.evaluate import EvaluateView
from datamodules.views.predict import PredictView
from datamodules.views.predict_clips import ARRIVING, ClipCanvases
from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.evaluation.streaming import Stream

SIDES = (240, 320)  # rows and columns
GLIMPSE, GLIMPSES, FRAMES = (2, 16, 16), 32, 8
ENCODERS = {
    "clips.yaml": EncoderConfig(4, 16, 64, 2, 32, headdim=32, move_embedding_dim=64, axes=3, tube=2),
    "tiny": EncoderConfig.named("tiny", axes=3, tube=2),
}


def make_video(path: Path, frames: int) -> None:
    """Write a video of a blurred noise that moves."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDES[0], SIDES[1] + 100, 3), dtype=np.uint8)
    noise = cv2.blur(noise, (9, 9))
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, SIDES[::-1])
    for number in range(frames):
        video.write(np.ascontiguousarray(noise[:, number % 100 :][:, : SIDES[1]]))
    video.release()


@torch.inference_mode()
def look(name: str, path: Path) -> dict[str, object]:
    """Look at a video with an encoder, on one core, in a process that has done nothing yet."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    stream = Stream(MambaEye(ENCODERS[name]).eval())
    clips = ClipCanvases(PredictView(), EvaluateView(GLIMPSES), ARRIVING, GLIMPSE, FRAMES, 0, PixelLimit())
    start = None
    for tube in clips.stream(str(path)):
        if tube.scene is None:
            break
        answer = stream.look(tube)
        if start is None:
            start, first = time.process_time(), tube.file.frames
    assert answer is not None
    assert start is not None
    seconds = time.process_time() - start
    each = GLIMPSES * GLIMPSE[0] // FRAMES
    return {
        "encoder": name,
        "frames": answer.frames,
        "frames_per_second": round((answer.frames - first) / seconds),
        "glimpses_per_second": round((answer.glimpses - each) / seconds),
        "peak_MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> None:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clip_stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 3000], help="lengths to try")
    parser.add_argument("--encoders", nargs="+", default=[*ENCODERS], choices=ENCODERS, help="which (default: all)")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        for frames in options.frames:
            path = Path(folder, f"{frames}.mp4")
            make_video(path, frames)
            for name in options.encoders:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    print(json.dumps(pool.apply(look, (name, path))), flush=True)


if __name__ == "__main__":
    main()
