"""The store's files: which there are, the types of their columns, and what could not be taken."""
