"""The server: OpenAI's, Anthropic's and Ollama's protocols over HTTP, on `app/` as the command line is."""
