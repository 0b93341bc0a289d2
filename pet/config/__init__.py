"""What can be set, with its one default, and how YAML files and `--set` become settings. Also the limits
within which other people's files are read. No model, no task's texts, no artifacts.
"""
