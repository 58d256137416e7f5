"""Benchmarks: `python -m pytest bench` for steps, `python bench/overhead.py` for calls and the import."""
