"""Labeled files of any known format -> labeled texts."""
