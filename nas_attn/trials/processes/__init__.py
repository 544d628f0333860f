"""Start processes that die with the driver, cold or forked off one that has fairseq imported."""
