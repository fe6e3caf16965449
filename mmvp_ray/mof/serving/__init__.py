"""An OpenAI-compatible endpoint for a trained Mixture-of-Features model: pure reading and writing of requests, and a thin Ray Serve shell."""
