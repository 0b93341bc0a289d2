"""The arithmetic of the method, on arrays: numpy and scipy only. No torch, no files, no settings."""
