"""The page of an export, in a real browser: what it looks at, and what it makes of it, is what Python would."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from browser import CHROMIUM, PATIENCE, Page, browser
from commands import ROOT
from exports import needs_torch
from torch import Tensor

import mambaeye
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.exporting import export
from mambaeye.exporting.serving import HOST, server_of
from mambaeye.exporting.trained import read_trained
from mambaeye.geometry.coverage import Coverage
from mambaeye.geometry.patches import cut_patches
from mambaeye.policies.base import Observation
from mambaeye.temperature import Temperature
from train import main

pytestmark = needs_torch
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt install chromium)")
DIGITS = {  # drawn from corner to corner of the unit square, (x, y)
    "1": [[(0.38, 0.25), (0.55, 0.08), (0.55, 0.92)]],
    "3": [[(0.3, 0.16), (0.5, 0.09), (0.68, 0.2), (0.64, 0.4), (0.46, 0.48), (0.66, 0.6)], [(0.66, 0.6), (0.68, 0.78),
          (0.5, 0.9), (0.3, 0.83)]],
}  # fmt: skip


@pytest.fixture(scope="module")
def address(exported: Path) -> Iterator[str]:
    with server_of(exported, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab: Page, address: str) -> Iterator[Page]:
    tab.look(1200, 900)
    tab.complaints.clear()
    tab.open(address)
    yield tab
    assert tab.complaints == []


def show_picture(page: Page, path: Path, height: int = 33, width: int = 57) -> None:
    """Choose a file with a picture of blurred noise."""
    noise = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 3))
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)
    page.wait_for("mambaeye.picture.width === " + str(width))
    page.value("mambaeye.last")


def history(page: Page) -> list[dict[str, Any]]:
    page.value("mambaeye.last")
    found: list[dict[str, Any]] = page.value("mambaeye.history")
    return found


def scene_of(page: Page) -> tuple[np.ndarray, list[int]]:
    """Return the canvas, (side, side, 3), and the picture's box on it."""
    side = page.value("mambaeye.scene.side")
    pixels = np.array(page.value("Array.from(mambaeye.scene.pixels)"), np.uint8).reshape(side, side, 4)
    return pixels[:, :, :3], page.value("mambaeye.scene.box")


def by_torch(exported: Path, canvas: np.ndarray, places: list[list[int]]) -> Tensor:
    """Return the logits after every glimpse, (T, classes), from the parallel form in float64."""
    encoder = mambaeye.load(exported)
    assert isinstance(encoder, MambaEye)
    positions = np.array(places)
    patches = cut_patches(canvas, positions, encoder.patch_size)
    with torch.no_grad():
        return encoder.double()(torch.from_numpy(patches)[None], torch.from_numpy(positions)[None])[0]


def require_as_torch(page: Page, exported: Path) -> list[list[int]]:
    """Require logits, classes and the share seen as Python has them, and return where the glimpses were."""
    taken = history(page)
    places = [one["place"] for one in taken]
    canvas, box = scene_of(page)
    expected = by_torch(exported, canvas, places)
    np.testing.assert_allclose([one["logits"] for one in taken], expected, atol=1e-4)
    np.testing.assert_allclose([one["probabilities"] for one in taken], expected.softmax(-1), atol=1e-4)
    ratio = mambaeye.information_ratio(np.array(places), box, 16)[-1].item()
    assert page.value("mambaeye.scene.ratio") == pytest.approx(ratio)
    assert page.value("document.querySelector('#glimpses').textContent") == str(len(places))
    return places


@needs_browser
def test_clicks_drags_and_keys_look_where_they_are_and_answers_are_torchs(
    page: Page, exported: Path, tmp_path: Path
) -> None:
    show_picture(page, tmp_path / "photo.png")
    side = page.value("mambaeye.scene.side")
    assert page.value("mambaeye.scene.box") == [(side - round(33 * side / 57)) // 2, 0, round(33 * side / 57), side]
    page.drag(page.stage([(0.5, 0.5)]))
    middle = history(page)
    assert np.abs(np.array(middle[0]["place"]) - (side / 2 - 8)).max() <= 1
    page.drag(page.stage([(0.3 + 0.05 * step, 0.4) for step in range(9)]))
    dragged = [one["place"] for one in history(page)[1:]]
    assert len(dragged) >= 2
    assert [col for _, col in dragged] == sorted(col for _, col in dragged)
    page.value("document.querySelector('#stage').focus()")
    before = history(page)[-1]["place"]
    page.press("ArrowDown")
    page.press("ArrowLeft", shift=True)
    page.press("Enter")
    pointed = page.value("mambaeye.cursor")
    assert require_as_torch(page, exported)[-1] == pointed
    assert pointed[0] == min(side - 16, before[0] + 8)


@needs_browser
@pytest.mark.parametrize("scan", ["random", "sobol", "varied", "learned"])
def test_it_looks_by_itself_and_answers_are_torchs(page: Page, exported: Path, tmp_path: Path, scan: str) -> None:
    show_picture(page, tmp_path / "photo.png", 64, 48)
    page.value("document.querySelector('#pace').value = 60")
    page.click(f"label:has([value={scan}])")
    page.click("#play")
    page.wait_for("mambaeye.history.length && !mambaeye.playing")
    places = require_as_torch(page, exported)
    assert len(places) == 9  # the glimpses of the checkpoint's validation
    _, (top, left, height, width) = scene_of(page)
    low, high = np.array([top, left]), np.array([top, left]) + np.maximum(0, np.array([height, width]) - 16)
    assert ((np.array(places) >= low) & (np.array(places) <= high)).all()
    page.click("#again")
    assert history(page) == []
    page.click("#once")
    require_as_torch(page, exported)


@needs_browser
def test_the_learned_scan_values_places_as_python_does(
    page: Page, small_checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    show_picture(page, tmp_path / "photo.png")
    for point in ((0.3, 0.4), (0.6, 0.55), (0.55, 0.45)):
        page.drag(page.stage([point]))
    places = require_as_torch(page, exported)
    canvas, box = scene_of(page)
    candidates = [[box[0] + row, col] for row, col in ((0, 0), (2, 9), (1, 20), (3, 4), (0, 13), (2, 2))]
    found = page.value(f"mambaeye.model.gains(mambaeye.scene, {json.dumps(candidates)})")
    trained = read_trained(small_checkpoint)
    coverage = Coverage(canvas.shape[:2], torch.tensor([box]), 16)
    positions = torch.tensor([places])
    coverage.add(positions)
    patches = torch.from_numpy(cut_patches(canvas, np.array(places), 16))[None]
    with torch.no_grad():
        features = trained.encoder.features(patches, positions)[:, -1]
        seen = Observation(
            len(places), features, trained.encoder.logits(features), coverage, positions, positions, torch.zeros(1), 16
        )
        expected = trained.policy.gains(seen, torch.tensor([candidates]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@needs_browser
def test_a_finger_draws_and_looks_and_the_picture_is_what_was_drawn(page: Page, exported: Path) -> None:
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    page.swipe(page.stage([(0.5, 0.2), (0.5, 0.5), (0.5, 0.8)]))
    assert page.value("mambaeye.drawing")
    page.click("#once")
    canvas, box = scene_of(page)
    middle = canvas.shape[0] // 2
    assert box == [0, 0, *canvas.shape[:2]]
    assert canvas[middle, middle].min() > 200  # the stroke, in the middle
    assert canvas[middle, :3].max() < 50
    page.swipe(page.stage([(0.2, 0.5), (0.5, 0.5), (0.8, 0.5)]))
    assert len(require_as_torch(page, exported)) >= 3
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)


@needs_browser
def test_a_temperature_tempers_probabilities_as_in_python(page: Page, tmp_path: Path) -> None:
    show_picture(page, tmp_path / "photo.png")
    for point in ((0.3, 0.4), (0.6, 0.55)):
        page.drag(page.stage([point]))
    taken = history(page)
    temperature = Temperature((0.3, -1.0, 0.7, 0.2, 0.4), (50, 60))
    told = json.dumps(temperature.saved())
    logits = torch.tensor(taken[-1]["logits"])
    found = page.value(
        f"(mambaeye.model.told.temperature = {told}, mambaeye.model.probabilities({logits.tolist()}, mambaeye.scene))"
    )
    _, box = scene_of(page)
    ratio = torch.tensor([[page.value("mambaeye.scene.ratio")]])
    expected = temperature.tempered(logits[None, None], ratio, len(taken) - 1, torch.tensor([box])).softmax(-1)
    np.testing.assert_allclose(found, expected[0, 0], atol=1e-5)


@needs_browser
def test_sobol_is_evenly_spread_and_no_scan_leaves_the_picture(page: Page) -> None:
    points = page.value(
        """(async () => {
        const { sobol, randomOf } = await import("./scans.js");
        const scene = { patch: 1, starts: [[0, 0], [63, 63]] };
        const scan = sobol(scene, randomOf(7));
        return Array.from({ length: 64 }, () => scan.next().value);
        })()"""
    )
    for rows, cols in ((8, 8), (64, 1), (1, 64), (16, 4)):  # every elementary interval has one point
        assert len({(row * rows // 64, col * cols // 64) for row, col in points}) == 64


@needs_browser
def test_nothing_comes_from_elsewhere_and_the_page_fits_any_screen(page: Page, address: str) -> None:
    names = page.value("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in names if not name.startswith((address, "data:"))] == []
    assert any(name.endswith(".wasm") for name in names)
    grounds = set()
    for width, height, dark in ((1200, 900, False), (1200, 900, True), (360, 640, True), (820, 1100, False)):
        page.look(width, height, dark)
        assert page.value("document.documentElement.scrollWidth") <= width
        grounds.add(page.value("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


@needs_browser
def test_opened_as_a_file_it_says_what_to_do(tab: Page, exported: Path) -> None:
    tab.call("Page.navigate", url=(exported / "index.html").as_uri())
    tab.wait_for("document.querySelector('#status')")
    assert "python -m http.server" in tab.value("document.querySelector('#status').innerText")
    tab.complaints.clear()


@pytest.mark.long
@needs_browser
def test_a_drawn_digit_is_recognised(tab: Page, quickstart: Path, tmp_path: Path) -> None:
    """By the quickstart's model."""
    checkpoint = quickstart / "runs/quickstart/checkpoints/last.ckpt"
    export(checkpoint, tmp_path / "exported", tell=lambda line: None)
    with server_of(tmp_path / "exported", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab.open(f"http://{HOST}:{server.server_port}/")
        tab.value("document.querySelector('#pace').value = 60")
        for digit, strokes in DIGITS.items():
            tab.click("#clear")
            for stroke in strokes:
                tab.drag(tab.stage(stroke))
            tab.click("#play")
            tab.wait_for("mambaeye.history.length >= 64 && !mambaeye.playing")
            assert tab.value("document.querySelector('#answer').textContent").startswith(f"{digit},")
            require_as_torch(tab, tmp_path / "exported")
        server.shutdown()


@pytest.mark.long
def test_demo_listens_on_this_machine_alone_and_ends_quietly(exported: Path) -> None:
    command = [sys.executable, "-m", "train", "demo", "--folder", str(exported), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    line = process.stdout.readline()
    assert line.startswith(f"http://{HOST}:")
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out.strip(), said.strip()) == (0, "", "")


@pytest.mark.long
def test_a_port_that_is_taken_is_a_sentence(exported: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} cannot be had \(.*\): give another with --port, or 0"):
            server_of(exported, port)


def test_demo_of_no_export_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no export: write one with python train.py export"):
        main(["demo", "--folder", str(tmp_path)])


@pytest.mark.long
def test_the_pages_own_files_are_linted() -> None:
    """By Biome, which npx fetches."""
    if shutil.which("npx") is None:
        pytest.skip("there is no npx here (Debian: apt install npm)")
    command = ["npx", "--yes", "@biomejs/biome@2.6.8", "check", "--error-on-warnings", "mambaeye/exporting/page"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    if "npm error" in ran.stderr:
        pytest.skip(f"Biome cannot be fetched here: {ran.stderr.strip().splitlines()[0]}")
    assert ran.returncode == 0, ran.stdout + ran.stderr
