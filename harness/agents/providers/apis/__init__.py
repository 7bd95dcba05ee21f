"""One module for each provider API: Responses, Chat Completions and Messages."""
