"""Flags that make fairseq's architectures tiny."""

TINY = [
    "--encoder-layers=2", "--decoder-layers=3", "--encoder-embed-dim=16", "--decoder-embed-dim=16",
    "--encoder-ffn-embed-dim=8", "--decoder-ffn-embed-dim=8", "--encoder-attention-heads=4",
    "--decoder-attention-heads=4",
]  # fmt: skip
TINY_ROBERTA = [*(flag for flag in TINY if "encoder" in flag), "--max-positions=16"]
TINY_LM = [flag for flag in TINY if "encoder" not in flag]
