"""How fast attention is: modules by themselves, and within fairseq's commands."""
