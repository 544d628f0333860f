"""Trained attention taken over by other schemes: exact where it can be, else as near as can be."""

from nas_attn.conversion.convert import Conversion, Errors, convert_attention, inherits
from nas_attn.conversion.metric import RecordedCall, recorded
from nas_attn.conversion.models import (
    Conversions,
    ConvertedModule,
    convert_model,
    warn_without_data,
)
from nas_attn.conversion.saved import load_converted, save_converted
from nas_attn.conversion.votes import settled_choice

__all__ = [
    "Conversion",
    "Conversions",
    "ConvertedModule",
    "Errors",
    "RecordedCall",
    "convert_attention",
    "convert_model",
    "inherits",
    "load_converted",
    "recorded",
    "save_converted",
    "settled_choice",
    "warn_without_data",
]
