"""Requirements of an encoder on the data that it is given, and of the way that they are looked at."""

from mambaeye.encoders.base import CausalEncoder, Encoder, GlimpseEncoder
from mambaeye.errors import InputError
from mambaeye.evaluation.early_exit import ExitCriteria


def require_streamable(encoder: Encoder, criteria: ExitCriteria) -> None:
    """Require an encoder that looks at clips as they arrive, to their ends.

    Raises:
        InputError: it answers only once; or it is to stop before.
    """
    if not isinstance(encoder, CausalEncoder):
        raise InputError(
            f"data.predict.stream carries a state from glimpse to glimpse, and {type(encoder).__name__} answers only "
            f"once: choose an encoder with one, such as MambaEye, or leave it out"
        )
    if criteria.rules:
        raise InputError(
            f"data.predict.stream looks at clips to their ends: leave model.exit_criteria.{criteria.rules[0].kind} out"
        )


def require_axes(encoder: Encoder, axes: int, tube: int) -> None:
    """Require that an encoder looks at what the data hold.

    Args:
        encoder: of the model.
        axes: of the data's images, 3 of clips.
        tube: frames of the data's glimpses of clips.

    Raises:
        InputError: it looks at images of other axes, or at glimpses of other frames.
    """
    if not encoder.looks_at(axes):
        looks, are = ("images" if number == 2 else "clips" for number in (encoder.axes, axes))
        fix = f"give --model.encoder.axes {axes}" if isinstance(encoder, GlimpseEncoder) else "choose another encoder"
        raise InputError(f"{type(encoder).__name__} looks at {looks}, and these data are {are}: {fix}")
    if axes > 2 and isinstance(encoder, GlimpseEncoder) and encoder.tube != tube:
        raise InputError(
            f"data.tube is {tube}, and {type(encoder).__name__} takes glimpses of {encoder.tube}: give --data.tube "
            f"{encoder.tube}, or choose another encoder"
        )


def require_channels(encoder: Encoder, channels: int) -> None:
    """Require that an encoder looks at images of so many channels.

    Raises:
        InputError: it looks at others.
    """
    if encoder.channels != channels:
        raise InputError(
            f"data.channels is {channels}, and {type(encoder).__name__} looks at {encoder.channels}: choose an encoder "
            f"of any channels (MambaEye, HNet, GlimpseViT, ViT, Vim)"
        )
