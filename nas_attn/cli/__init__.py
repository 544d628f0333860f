"""The `nas-attn` command: the only part that prints and exits."""
