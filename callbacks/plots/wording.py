"""Words and numbers as plots and reports write them."""


def counted(number: int, what: str) -> str:
    """Return so many of them, in words: 1 glimpse, 4 glimpses."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Return a share of 1 in percent, with a decimal where it says something."""
    return f"{100 * share:.1f} %" if 0.00005 < share < 0.0995 or 0.9 < share < 0.9995 else f"{100 * share:.0f} %"


def shortened(text: str, letters: int) -> str:
    """Return what can be shown of a text, with its middle left out where it is long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    half = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[:half]}…{text[-half:]}"
