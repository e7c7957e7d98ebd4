"""The command line. See README.md beside this file."""
