"""The `mixos` command: one module per verb, each thin: parse, call, print."""
