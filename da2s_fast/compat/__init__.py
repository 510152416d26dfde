"""Drop-ins with the names and constructors of public DARTS-family code, one module per project."""
