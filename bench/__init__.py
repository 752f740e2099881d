"""Benchmarks: fastfs beside the pure-Python filesystem store of glance_store. See README.md."""
