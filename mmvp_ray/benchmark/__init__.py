"""Benchmarks of pairs: questions and statements, their layouts on disk, the nine visual patterns, answer keys and exports."""
