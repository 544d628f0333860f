"""Search for attention schemes that share weights among heads, trained with fairseq."""

__version__ = "0.1.0"
