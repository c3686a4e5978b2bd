"""The parts of `benchmarks/run.py`, one file for each thing that is measured."""
