"""Denoisers, and the step caching of papers written out in plain torch."""
