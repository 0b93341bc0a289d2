"""The stages, one file each: key, run, and what they write."""
