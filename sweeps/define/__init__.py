"""What a sweep is made of: its points, and the overrides that they become."""
