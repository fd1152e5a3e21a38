"""The command line: verbs only; nothing here that the library does not do."""
