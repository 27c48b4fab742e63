"""The `microdit` command, one module per subcommand."""
