"""One folder per analysis: `analysis.yaml` and the functions that it names, `physics.py`."""
