"""View: the Textual monitor, an ordinary client."""
