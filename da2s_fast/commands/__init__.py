"""The commands of `da2s`, one module each."""
