"""How each benchmark is shown on the page: one Section each, pure functions from its JSON to Markdown."""
