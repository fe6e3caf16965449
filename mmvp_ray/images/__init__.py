"""Bytes become uint8 pixels: decode, limits, geometry, and a child process for decoders that crash."""
