"""From points to planned runs: composed, checked, named and signed."""
