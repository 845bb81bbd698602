"""Hydra's configuration files, and the dataclasses that type them."""
