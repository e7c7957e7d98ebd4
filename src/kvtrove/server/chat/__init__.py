"""Conversations: messages to a prompt that fits, tokens back to text and tool calls. Knows nothing of HTTP."""
