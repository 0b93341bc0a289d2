"""Where the work of a run is done other than in its own process."""
