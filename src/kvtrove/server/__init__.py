"""The HTTP server: an OpenAI-compatible API on one engine. See README.md beside this file."""
