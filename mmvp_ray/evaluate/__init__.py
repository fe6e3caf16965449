"""Evaluation of encoders and multimodal models: who is asked, what they answered, and what the answers are worth."""
