"""One module for each provider API: OpenAI's Responses and Chat Completions, and Anthropic's Messages."""
