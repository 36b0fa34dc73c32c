"""Decoders of 2-D and 2.5-D networks, one file each."""
