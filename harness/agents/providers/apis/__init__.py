"""One module for each of three APIs: OpenAI Responses, OpenAI Chat Completions and Anthropic Messages."""
