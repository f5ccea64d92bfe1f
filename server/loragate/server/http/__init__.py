"""OpenAI-shaped HTTP over FastAPI: the application, its bodies and its answers."""
