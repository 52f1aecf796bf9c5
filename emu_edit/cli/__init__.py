"""The command line: one small module per verb, heavy imports inside the verb."""
