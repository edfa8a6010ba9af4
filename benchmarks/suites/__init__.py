"""Suites by name; a suite is a file of plain data."""

from benchmarks.suites.any_scan import ANY_SCAN, ANY_SCAN_FASHION
from benchmarks.suites.brain import BRAIN
from benchmarks.suites.cifar10 import CIFAR10
from benchmarks.suites.comparison import (
    COMPARISON,
    COMPARISON_CIFAR10,
    COMPARISON_FASHION,
    DIRECTIONS,
    DIRECTIONS_CIFAR10,
    DIRECTIONS_FASHION,
)
from benchmarks.suites.digits import DIGITS
from benchmarks.suites.hierarchy import HIERARCHY, HIERARCHY_FASHION, HIERARCHY_SAVING
from benchmarks.suites.hierarchy_dense import HIERARCHY_DENSE
from benchmarks.suites.learned_scan import LEARNED_DIGITS, LEARNED_FASHION
from benchmarks.suites.suite import Suite
from benchmarks.suites.video import ARROW_OF_TIME, MOVING_BLACK, MOVING_VIDEO, MOVING_VIDEO_DIGIT, VIDEO_SPEED

SUITES: dict[str, Suite] = {
    "digits": DIGITS,
    "cifar10": CIFAR10,
    "any_scan": ANY_SCAN,
    "any_scan_fashion": ANY_SCAN_FASHION,
    "learned_digits": LEARNED_DIGITS,
    "learned_fashion": LEARNED_FASHION,
    "comparison": COMPARISON,
    "comparison_fashion": COMPARISON_FASHION,
    "comparison_cifar10": COMPARISON_CIFAR10,
    "comparison_directions": DIRECTIONS,
    "comparison_directions_fashion": DIRECTIONS_FASHION,
    "comparison_directions_cifar10": DIRECTIONS_CIFAR10,
    "hierarchy": HIERARCHY,
    "hierarchy_saving": HIERARCHY_SAVING,
    "hierarchy_fashion": HIERARCHY_FASHION,
    "hierarchy_dense": HIERARCHY_DENSE,
    "moving_black": MOVING_BLACK,
    "moving_video": MOVING_VIDEO,
    "moving_video_digit": MOVING_VIDEO_DIGIT,
    "arrow_of_time": ARROW_OF_TIME,
    "video_speed": VIDEO_SPEED,
    "brain": BRAIN,
}
