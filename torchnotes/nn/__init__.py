"""Layers over the hand-derived ops, each interchangeable with its torch.nn twin."""
