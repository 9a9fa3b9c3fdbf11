"""Conversations: messages, sessions on disk, and material that goes into a turn."""
