"""What a launch leaves on disk: code, ledger, claims, failures."""
