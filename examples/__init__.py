"""Tasks that are not the trainer; docs/tasks.md tells how to write one."""
