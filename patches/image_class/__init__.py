"""Patches that name the class of the image."""
