"""Loading samples: batch sizes, worker processes, and what may go wrong."""

from dataclasses import dataclass

from datamodules.shards.index import ShardIndex
from datamodules.shards.order import LoaderLayout, divide
from datamodules.storage.limits import ReadLimits
from datamodules.transforms.headers import MAX_PIXELS, PixelLimit
from mambaeye.contracts import OptimizerStep
from mambaeye.errors import InputError

STREAMED_SPAN = 4  # shards, some 440 MB of ImageNet for each worker


@dataclass(frozen=True)
class LoaderConfig:
    """Loading of samples, in training and everywhere else."""

    batch_size: int = 64
    """Images an optimizer step, of all processes together; what one process takes follows from it."""
    micro_batch_size: int | None = None
    """Images that a process takes at once, at most; what its share of batch_size has more is accumulated. null takes
    all at once."""
    num_workers: int = 1
    """Worker processes that load data, for each process; 0 loads in the process itself."""
    shuffle_span: int | None = None
    """Shards over which training shuffles its samples; 1 takes shard after shard. null shuffles over all where they are
    files, and over 4 where they stream: a worker then holds about as many shards of undecoded images."""
    max_unreadable: int = 0
    """Samples an epoch and process that may be unreadable: left out, counted and reported. One more stops the run."""
    max_pixels: int = MAX_PIXELS
    """Pixels that an image may have; one of more is unreadable, by its header and before any memory is taken for it. In
    predict, and in validation with data.evaluate.resize none, a tiled TIFF of more is read where glimpses fall, and
    each tile may have so many.
    OpenCV itself decodes 2^30 at most, unless the environment's OPENCV_IO_MAX_IMAGE_PIXELS says otherwise."""
    timeout: float = 600.0
    """Seconds without a batch after which worker processes count as stuck and the run stops; 0 for never."""
    read_timeout: float = 60.0
    """Seconds that a URL or command may take to answer, or for the next bytes, before a read counts as broken off; it
    is tried again three times."""
    min_rate: float = 1000.0
    """Bytes a second that a URL or command must give, over read_timeout seconds of waiting for it; 0 for any."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("micro_batch_size", self.micro_batch_size, 1),
            ("num_workers", self.num_workers, 0),
            ("shuffle_span", self.shuffle_span, 1),
            ("max_unreadable", self.max_unreadable, 0),
            ("max_pixels", self.max_pixels, 1),
            ("timeout", self.timeout, 0),
            ("read_timeout", self.read_timeout, 0.1),
            ("min_rate", self.min_rate, 0),
        ):
            if value is not None and not value >= least:
                raise InputError(f"data.loader.{name} is {value}: give at least {least}")

    @property
    def pixel_limit(self) -> PixelLimit:
        """Return the most pixels that an image may have, with its flag."""
        return PixelLimit(self.max_pixels)

    @property
    def read_limits(self) -> ReadLimits:
        """Return how slow URLs and commands may be."""
        return ReadLimits(self.read_timeout, self.min_rate)

    def optimizer_step(self, ranks: int) -> OptimizerStep:
        """Return how the images of an optimizer step are shared out among so many processes."""
        return OptimizerStep(self.batch_size, *divide(self.batch_size, ranks, self.micro_batch_size))

    def images_at_once(self, ranks: int) -> int:
        """Return how many images a process takes at once, at most, where it learns nothing."""
        batch_size = -(-self.batch_size // ranks)
        return min(batch_size, self.micro_batch_size or batch_size)

    def training_layout(self, index: ShardIndex, ranks: int) -> LoaderLayout:
        """Return who shares the samples of an index in training."""
        _, micro_batch, accumulation = self.optimizer_step(ranks)
        span = STREAMED_SPAN if self.shuffle_span is None and index.streaming else self.shuffle_span
        return LoaderLayout(ranks, max(1, self.num_workers), micro_batch, accumulation, index.streaming, span)

    def evaluation_layout(self, index: ShardIndex, ranks: int) -> LoaderLayout:
        """Return who shares the samples of an index where nothing is learnt."""
        return LoaderLayout(ranks, max(1, self.num_workers), self.images_at_once(ranks), runs=index.streaming)
