"""Where trials run: on this machine, on a Ray cluster, or nowhere."""
