"""Pictures of where a policy looks: what they show is what it did."""

import numpy as np
import torch
from lightning import Trainer

from callbacks.plots.gaze import PARTS, Gaze
from callbacks.reports.learned_scan import LearnedScanReport
from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.views.evaluate import EvaluateView
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.module import ClassifierModule
from mambaeye.policies.fixed import FixedScan
from mambaeye.policies.learned import LearnedScan
from mambaeye.policy_learning import PolicyLearning

SIZES = {"dim": 8, "depth": 1, "d_state": 4, "headdim": 4, "move_embedding_dim": 4}


def test_heat_is_the_share_of_images_that_a_glimpse_shows() -> None:
    """On boxes of which a pixel is a part or two, counted pixel by pixel."""
    rng = np.random.default_rng(0)
    boxes = np.array([[3, 5, PARTS, PARTS], [0, 1, PARTS // 2, PARTS]])
    positions = np.stack((rng.integers(0, 20, (2, 3)), rng.integers(0, 20, (2, 3))), axis=-1)
    gaze = Gaze(positions, boxes, 4, np.zeros(2), np.zeros(2))
    for glimpse in (1, 3):
        expected = np.zeros((PARTS, PARTS))
        for image, (top, left, height, width) in enumerate(boxes):
            row, col = positions[image, glimpse - 1]
            shown = np.zeros((80, 80), bool)
            shown[row : row + 4, col : col + 4] = True
            own = shown[top : top + height, left : left + width]
            expected += own.repeat(PARTS // height, 0).repeat(PARTS // width, 1)
        np.testing.assert_array_equal(gaze.heat(glimpse), expected / 2)


def test_a_validation_under_the_learned_scan_is_drawn(tmp_path_factory, data_dir) -> None:
    folder = str(data_dir / "digits" / "val")
    for policy, drawn in ((LearnedScan(candidates=4, dim=8), True), (FixedScan(), False)):
        torch.manual_seed(0)
        module = ClassifierModule(
            MambaEye(num_classes=10, **SIZES), policy, PolicyLearning(candidates=3, random_walks=(1.0, 1.0))
        )
        report, run = LearnedScanReport(images=50), tmp_path_factory.mktemp("run")
        data = ShardDataModule(
            folder,
            folder,
            resolutions=(32, 40),
            scans=("random", "learned"),
            evaluate=EvaluateView(num_glimpses=5),
            loader=LoaderConfig(batch_size=40, num_workers=0),
        )
        settings = {"limit_val_batches": 2, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=run, callbacks=[report], **settings)
        trainer.validate(module, data, verbose=False)
        assert (run / "validation" / "learned_scan.png").exists() == drawn
        gazes = report.gazes[1] if drawn else []
        assert sum(len(gaze.boxes) for gaze in gazes) == (50 if drawn else 0)
        for gaze in gazes:
            assert gaze.positions.shape[1:] == (5, 2)
            assert gaze.expected.shape == gaze.actual.shape == (len(gaze.boxes) * 4 * 3,)
