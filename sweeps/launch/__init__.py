"""From a command line to work handed over."""
