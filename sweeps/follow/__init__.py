"""Where the runs of a sweep stand, and how that is shown."""
