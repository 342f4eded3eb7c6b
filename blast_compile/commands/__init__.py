"""What `blast-compile` runs, a module a command. They print; the library does not."""
