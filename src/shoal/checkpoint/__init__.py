"""Checkpoints: atomic, hashed, readable at any world size (safetensors and a JSON manifest)."""

from shoal.checkpoint.manifest import FileEntry
from shoal.checkpoint.reader import Checkpoint
from shoal.checkpoint.store import Checkpoints, SaveFailed

__all__ = ["Checkpoint", "Checkpoints", "FileEntry", "SaveFailed"]
