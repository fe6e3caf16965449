"""Repeatable measurements: ratios against a baseline in the same run, never asserted in tests; __main__.py runs all."""
